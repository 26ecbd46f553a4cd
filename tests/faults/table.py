"""The faults. Those that upstream had name the thread; the rest are what such code gets wrong."""

from tests.faults.fault import Fault

INDEXER = "sglang/srt/layers/attention/nsa/nsa_indexer.py"
BACKEND = "sglang/srt/layers/attention/aiter_backend.py"
MLA = "sglang/srt/models/deepseek_common/attention_forward_methods/forward_mla.py"
MLA_0_5_9 = "sglang/srt/models/deepseek_v2.py"
POOL = "sglang/srt/mem_cache/memory_pool.py"

LAYERNORM_FAULTS = [
    Fault(
        "a new guard tells nobody",
        "layernorm",
        "layernorm.py",
        "        return False  # forward_native raises\n",
        "        return False  # forward_native raises\n"
        "    if x.shape[0] > 64:\n"
        "        return False\n",
        tests="tests/modules/test_guards.py",
    ),
    Fault(
        "fp32 parameters go into the CK operator",  # ROCm/ATOM#1796
        "layernorm",
        "layernorm.py",
        "dtypes = [x.dtype, norm.dtype, *(p.dtype for p in _applied(norm) if p is not None)]",
        "dtypes = [x.dtype]",
        "gfx950",
    ),
    Fault(
        "the type that the layer computes in is not asked",
        "layernorm",
        "layernorm.py",
        "dtypes = [x.dtype, norm.dtype, *",
        "dtypes = [x.dtype, *",
    ),
    Fault(
        "aiter's LayerNorm, which cuts off, on gfx942",
        "layernorm",
        "layernorm.py",
        'aiter_op("aiter", "layernorm2d_fwd") if arch() == "gfx950" else None',
        'aiter_op("aiter", "layernorm2d_fwd")',
    ),
    Fault(
        "a row is added up by other threads in a small batch",
        "layernorm",
        "launch_parameters.py",
        '"layernorm": (Choice(256, 512, 0),',
        '"layernorm": (Choice(256, 1, 0),',
        tests="tests/kernels/test_batch_invariance.py",
    ),
    Fault(
        "the compiler fuses LayerNorm's products and sums as it finds them",
        "layernorm",
        "layernorm_kernel.py",
        'OPTIONS = {"enable_fp_fusion": False}',
        "OPTIONS = {}",
        tests="tests/kernels/test_batch_invariance.py",
    ),
    Fault(
        "a bias that the layer does not use is applied",
        "layernorm",
        "layernorm.py",
        "norm.bias if norm.use_bias else None",
        "norm.bias",
    ),
    Fault(
        "the variance counts the lanes past the row",
        "layernorm",
        "layernorm_kernel.py",
        "centred = tl.where(n < N, x - mean, 0.0)",
        "centred = x - mean",
    ),
    Fault(
        "LayerNorm's grid is short by one",
        "layernorm",
        "layernorm_kernel.py",
        '(triton.cdiv(num_rows, parameters["BLOCK_R"]),)',
        '(max(num_rows // parameters["BLOCK_R"], 1),)',
    ),
    Fault(
        "k_norm stays in fp32",
        "layernorm",
        INDEXER,
        "dtype=torch.bfloat16 if rocm_layernorm.ACTIVE else torch.float32,",
        "dtype=torch.float32,",
    ),
]
INDEXER_FAULTS = [
    Fault(
        "head gates that do not fit say nothing",
        "indexer",
        "indexer.py",
        '        SLUG.decline(f"head gates: {reason}")\n',
        "",
        tests="tests/modules/test_guards.py",
    ),
    Fault(
        "deterministic inference has a sum that is split by the batch",
        "indexer",
        "indexer.py",
        "if reason := by_batch() or why_not(x, weight):",
        "if reason := why_not(x, weight):",
        tests="tests/modules/test_indexer.py",
    ),
    Fault(
        "the index K that is computed alone is rotated twice",
        "indexer",
        INDEXER,
        "positions, k_rope.clone() if rocm_indexer.ACTIVE else k_rope, k_rope",
        "positions, k_rope, k_rope",
        tests="tests/modules/test_indexer.py",
    ),
    Fault(
        "240 for 224",
        "indexer",
        "indexer_kernel.py",
        "torch.float8_e4m3fnuz: 224.0",
        "torch.float8_e4m3fnuz: 240.0",
    ),
    Fault(
        "aiter's operator, with its 240, on gfx942",
        "indexer",
        "indexer.py",
        'aiter_op("aiter.ops.cache", "indexer_k_quant_and_cache") if arch() == "gfx950" else None',
        'aiter_op("aiter.ops.cache", "indexer_k_quant_and_cache")',
    ),
    Fault(
        "amax has no floor",
        "indexer",
        "indexer_kernel.py",
        "tl.maximum(amax, AMAX_FLOOR)",
        "amax",
    ),
    Fault(
        "index keys with a slot of -1 are written",
        "indexer",
        "indexer_kernel.py",
        "written = slot >= 0",
        "written = slot >= -1",
    ),
    Fault(
        "index keys go to the next token's slot",
        "indexer",
        "indexer_kernel.py",
        "slot = tl.load(slot_ptr + token * slot_stride, mask=inside, other=-1)",
        "slot = tl.load(slot_ptr + (token + 1) * slot_stride, mask=token < num_tokens - 1, "
        "other=-1)",
    ),
    Fault(
        "index keys go to the wrong page",
        "indexer",
        "indexer_kernel.py",
        "page = slot // PAGE_SIZE * PAGE_STRIDE",
        "page = (slot // PAGE_SIZE + 1) * PAGE_STRIDE",
    ),
    Fault(
        "the stored scale of an index key is squared",
        "indexer",
        "indexer_kernel.py",
        "    tl.store(scales[:, None] + lane, scale[:, None],",
        "    tl.store(scales[:, None] + lane, (scale * scale)[:, None],",
    ),
    Fault(
        "index keys are truncated, not rounded",
        "indexer",
        "indexer_kernel.py",
        "    tl.store(rows + column, value.to(rows.dtype.element_ty), mask=written)",
        "    value = (value.to(tl.int32, bitcast=True) & -1048576).to(tl.float32, bitcast=True)\n"
        "    tl.store(rows + column, value.to(rows.dtype.element_ty), mask=written)",
    ),
    Fault(
        "the index store's grid is short by one",
        "indexer",
        "indexer_kernel.py",
        '_store_index_k_kernel[(triton.cdiv(num_tokens, parameters["BLOCK_T"]),)]',
        '_store_index_k_kernel[(max(num_tokens // parameters["BLOCK_T"], 1),)]',
    ),
    Fault(
        "head gates lack the softmax scale",
        "indexer",
        "indexer_gate_kernel.py",
        "gate * head_scale * q_scale * softmax_scale",
        "gate * head_scale * q_scale",
    ),
    Fault(
        "head gates lack the scale of the heads",
        "indexer",
        "indexer.py",
        "(indexer.n_heads**-0.5, indexer.softmax_scale)",
        "(1.0, indexer.softmax_scale)",
    ),
]
NSA_FAULTS = [
    Fault(
        "prepare and core both rotate",  # sglang#24148
        "nsa-fp8-kv",
        MLA,
        """            skip_rope_for_nsa_tilelang_fused = rocm_nsa_fp8_kv.ropes_in_core(
                self, forward_batch, llama_4_scaling
            )""",
        "            skip_rope_for_nsa_tilelang_fused = False",
    ),
    Fault(
        "an aiter backend rotates twice on gfx950",  # sglang#24148
        "nsa-fp8-kv",
        MLA,
        "if _use_aiter_gfx95 and (ropes_here or not rocm_decides):",
        "if _use_aiter_gfx95:",
        "gfx950",
    ),
    Fault(
        "core does not rotate on gfx950 under an aiter backend",
        "nsa-fp8-kv",
        MLA,
        "if _use_aiter_gfx95 and (ropes_here or not rocm_decides):",
        "if _use_aiter_gfx95 and not rocm_decides:",
        "gfx950",
    ),
    Fault(
        "K gathered by context parallelism is rotated with local positions",  # sglang#32098
        "nsa-fp8-kv",
        "nsa_fp8_kv.py",
        "    if nsa_use_prefill_cp(forward_batch):",
        "    if False and nsa_use_prefill_cp(forward_batch):",
    ),
    Fault(
        "the FP8 branch of the pool cannot be reached",  # sglang#22314
        "nsa-fp8-kv",
        POOL,
        "        if rocm_nsa_fp8_kv.ACTIVE and rocm_nsa_fp8_kv.holds_plain_rows(self):",
        "        if self.nsa_kv_cache_store_fp8 and rocm_nsa_fp8_kv.holds_plain_rows(self):",
    ),
    Fault(
        "decode's NSA backend decides for prefill",
        "nsa-fp8-kv",
        "nsa_fp8_kv.py",
        "    return server_args.nsa_prefill_backend",
        "    return server_args.nsa_decode_backend",
    ),
    Fault(
        "k_pe is cached as it was before the rotation",
        "nsa-fp8-kv",
        "nsa_fp8_kv_kernel.py",
        "            latent, shared, row, always, stored, cos + angle, sin + angle,",
        "            latent, shared, row, always, stored, cos, sin,",
    ),
    Fault(
        "q is not rotated",
        "nsa-fp8-kv",
        "nsa_fp8_kv_kernel.py",
        "            absorbed, rotary, out, live, live, cos + angle, sin + angle,",
        "            absorbed, rotary, out, live, live, cos, sin,",
    ),
    Fault(
        "interleaved pairs are taken for halves",
        "nsa-fp8-kv",
        "nsa_fp8_kv_kernel.py",
        "        NEOX=is_neox,",
        "        NEOX=not is_neox,",
    ),
    Fault(
        "the rotary part of a latent row lies before the compressed one",
        "nsa-fp8-kv",
        "nsa_fp8_kv_kernel.py",
        """    _store_rows(target, latent, live, NOPE, BLOCK_NOPE, MAX)
    _store_rows(target + NOPE, rotary, live, PE, BLOCK_PE, MAX)""",
        """    _store_rows(target + PE, latent, live, NOPE, BLOCK_NOPE, MAX)
    _store_rows(target, rotary, live, PE, BLOCK_PE, MAX)""",
    ),
    Fault(
        "latent rows overflow to NaN",
        "nsa-fp8-kv",
        "nsa_fp8_kv_kernel.py",
        "    store_columns(rows, x, live & (column < WIDTH), column, None, MAX)",
        "    store_columns(rows, x, live & (column < WIDTH), column, None, 0.0)",
    ),
    Fault(
        "latent rows with a slot of -1 are written",
        "nsa-fp8-kv",
        "nsa_fp8_kv_kernel.py",
        "    live = slot >= 0\n",
        "    live = (slot >= -1) & given\n",
    ),
    Fault(
        "the latent write's grid is short by one",
        "nsa-fp8-kv",
        "nsa_fp8_kv_kernel.py",
        "_write_rows_kernel[(triton.cdiv(tokens, together),)]",
        "_write_rows_kernel[(max(tokens // together, 1),)]",
    ),
    Fault(
        "the last query heads are left out",
        "nsa-fp8-kv",
        "nsa_fp8_kv_kernel.py",
        "_rope_and_write_kernel[(tokens, 1 + triton.cdiv(heads, together))]",
        "_rope_and_write_kernel[(tokens, max(triton.cdiv(heads, together), 1))]",
    ),
    Fault(
        "a launch past the LDS of gfx942",  # sglang#23963
        "nsa-fp8-kv",
        "nsa_fp8_kv.py",
        "    return nsa_fp8_kv_lds.fit(",
        "    return inner_iter or nsa_fp8_kv_lds.fit(",
    ),
    Fault(
        "upstream's FP8 attention goes on quantising q and the probabilities",
        "nsa-fp8-kv",
        "sglang/srt/layers/attention/nsa/tilelang_kernel.py",
        "    if rocm_nsa_fp8_kv.ACTIVE and rocm_nsa_fp8_kv.attends(q, kv, indices, d_v):",
        "    if rocm_nsa_fp8_kv.ACTIVE and not rocm_nsa_fp8_kv.attends(q, kv, indices, d_v):",
    ),
    Fault(
        "q goes to our attention as e4m3",
        "nsa-fp8-kv",
        "nsa_fp8_kv.py",
        "torch.bfloat16 if ours else None",
        "None",
    ),
    Fault(
        "the exponentials of base 2 are taken of natural logarithms",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla.py",
        "sm_scale * kv_scale * tiles.LOG2_E",
        "sm_scale * kv_scale",
    ),
    Fault(
        "the parts of a token's keys are not combined",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla.py",
        "        merge(part, lse, out)",
        "        out.copy_(part[:, 0])",
    ),
    Fault(
        "a TileLang that nobody checked is trusted",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla.py",
        "    if reason := unchecked_tilelang():",
        "    if False and (reason := unchecked_tilelang()):",
    ),
    Fault(
        "rows of 656 bytes for TileLang on gfx950",
        "nsa-fp8-kv",
        "sglang/srt/model_executor/model_runner_kv_cache_mixin.py",
        "        if rocm_nsa_fp8_kv.ACTIVE and rocm_nsa_fp8_kv.reads_plain_rows(self):",
        "        if False and rocm_nsa_fp8_kv.reads_plain_rows(self):",
        "gfx950",
        release="0.5.9",
    ),
    Fault(
        "a server starts with an FP8 cache that nothing can read",
        "nsa-fp8-kv",
        "nsa_fp8_kv.py",
        "        if reason:\n            raise ValueError(_NO_FP8.format(reason))\n    return",
        "    return",
        release="0.5.9",
    ),
    Fault(
        "0.5.9: prepare and core both rotate",
        "nsa-fp8-kv",
        MLA_0_5_9,
        "                and rocm_nsa_fp8_kv.ropes_in_core(self, forward_batch, llama_4_scaling)",
        "                and False",
        release="0.5.9",
    ),
    Fault(
        "0.5.9: an aiter backend rotates twice on gfx950",
        "nsa-fp8-kv",
        MLA_0_5_9,
        "            if _use_aiter_gfx95 and (ropes_here or not rocm_decides):",
        "            if _use_aiter_gfx95:",
        "gfx950",
        release="0.5.9",
    ),
    Fault(
        "0.5.9: a dense attention backend is given q without K on gfx950",
        "nsa-fp8-kv",
        MLA_0_5_9,
        '        if ropes_here and self.current_attention_backend == "nsa":',
        "        if ropes_here:",
        "gfx950",
        release="0.5.9",
    ),
    Fault(
        "0.5.9: latent rows are cast without a clamp",
        "nsa-fp8-kv",
        POOL,
        "        if rocm_nsa_fp8_kv.ACTIVE and rocm_nsa_fp8_kv.holds_plain_rows(self):",
        "        if self.nsa_kv_cache_store_fp8 and rocm_nsa_fp8_kv.holds_plain_rows(self):",
        release="0.5.9",
    ),
    Fault(
        "0.5.9: the softmax scale is dropped",
        "nsa-fp8-kv",
        "sglang/srt/layers/attention/nsa/tilelang_kernel.py",
        "rocm_nsa_fp8_kv.attend(q, kv, indices, sm_scale, d_v)",
        "rocm_nsa_fp8_kv.attend(q, kv, indices, 1.0, d_v)",
        release="0.5.9",
    ),
    Fault(
        "0.5.9: a launch past the LDS of gfx942",
        "nsa-fp8-kv",
        "nsa_fp8_kv.py",
        "        nsa_fp8_kv_lds.require(",
        "        block or nsa_fp8_kv_lds.require(",
        release="0.5.9",
    ),
    Fault(
        "GLM-5's rope has the default base",
        "nsa-fp8-kv",
        "nsa_fp8_kv_glm.py",
        'rope_parameters["rope_theta"]',
        "10000.0",
        release="0.5.9",
    ),
]
ROPE_FAULTS = [
    Fault(
        "a rotation that torch.compile has in its native form says nothing",
        "rope-kv-store",
        "rope_kv_store.py",
        "    _say_native()\n",
        "",
        tests="tests/modules/test_rope_kv_store.py",
    ),
    Fault(
        "the pristine steps rotate twice",
        "rope-kv-store",
        "rope_kv_store.py",
        "    query, key = rotate(positions, query, key, offsets)\n",
        "    query, key = rotate(positions, *rotate(positions, query, key, offsets), offsets)\n",
    ),
    Fault(
        "a plain pool is asked for its sliding-window slots",  # sglang#31688
        "rope-kv-store",
        "kv_cache.py",
        "    full_to_swa = None\n    if",
        "    full_to_swa = pool.full_to_swa_index_mapping.view(-1)\n    if",
    ),
    Fault(
        "sliding-window layers store at slots of the full pool",
        "rope-kv-store",
        "kv_cache.py",
        "if is_swa and pool.full_to_swa_index_mapping is not None:",
        "if not is_swa and pool.full_to_swa_index_mapping is None:",
    ),
    Fault(
        "tokens with a slot of -1 are stored",
        "rope-kv-store",
        "rope_kv_store_kernel.py",
        "    stored = live & (slot >= 0)",
        "    stored = live & (slot >= -1)",
    ),
    Fault(
        "K with a slot of -1 is not written back",  # sglang#19636
        "rope-kv-store",
        "rope_kv_store_kernel.py",
        "    store_pairs(k_rows, k1, k2, live, HALF, BLOCK_HALF, NEOX)",
        "    store_pairs(k_rows, k1, k2, live & (slot >= 0), HALF, BLOCK_HALF, NEOX)",
    ),
    Fault(
        "K is cached as it was before the rotation",
        "rope-kv-store",
        "rope_kv_store_kernel.py",
        """    k1, k2 = rotate(k1, k2, cos, sin)
    store_pairs(k_rows, k1, k2,""",
        """    r1, r2 = rotate(k1, k2, cos, sin)
    store_pairs(k_rows, r1, r2,""",
    ),
    Fault(
        "the rotation turns the other way",
        "rope-kv-store",
        "rotary.py",
        "    return tl.fma(x1, cos, -(x2 * sin)), tl.fma(x2, cos, x1 * sin)",
        "    return tl.fma(x1, cos, x2 * sin), tl.fma(x2, cos, -(x1 * sin))",
    ),
    Fault(
        "the compiler fuses the rotation as it finds it",
        "rope-kv-store",
        "rotary.py",
        "    return tl.fma(x1, cos, -(x2 * sin)), tl.fma(x2, cos, x1 * sin)",
        "    return x1 * cos - x2 * sin, x2 * cos + x1 * sin",
        tests="tests/kernels/test_batch_invariance.py",
    ),
    Fault(
        "the wrong half is rotated",
        "rope-kv-store",
        "rope_kv_store_kernel.py",
        "        NEOX=neox,",
        "        NEOX=not neox,",
    ),
    Fault(
        "K and V are cached in each other's place by the fused rotation",
        "rope-kv-store",
        "rope_kv_store_kernel.py",
        "        cache.k,\n        cache.v,",
        "        cache.v,\n        cache.k,",
    ),
    Fault(
        "the fused store drops the k scale",
        "rope-kv-store",
        "rope_kv_store.py",
        "        store.slots,\n        store.k_scale,\n        store.v_scale,\n    )\n    ret",
        "        store.slots,\n        None,\n        store.v_scale,\n    )\n    ret",
    ),
    Fault(
        "the fused store divides V by the k scale",
        "rope-kv-store",
        "rope_kv_store_kernel.py",
        "        kernel_scale(v_scale),",
        "        kernel_scale(k_scale),",
    ),
    Fault(
        "the fused rotation's grid is short by one",
        "rope-kv-store",
        "rope_kv_store_kernel.py",
        "(triton.cdiv(tokens, block_t) * kv_heads,)",
        "(max(triton.cdiv(tokens, block_t) * kv_heads - 1, 1),)",
    ),
    Fault(
        "context parallelism rotates and stores before the gather",
        "rope-kv-store",
        "rope_kv_store.py",
        "    if context_parallel:\n",
        "    if False and context_parallel:\n",
    ),
    Fault(
        "attention stores again what the rotation has stored",
        "rope-kv-store",
        "sglang/srt/models/gpt_oss.py",
        "save_kv_cache=not enable_fused_set_kv_buffer(forward_batch),",
        "save_kv_cache=True,",
    ),
    Fault(
        "0.5.9: what the triton backend reads as it is has scales",
        "rope-kv-store",
        "rope_kv_store.py",
        '"TritonAttnBackend") and triton_uses_scales()\n',
        '"TritonAttnBackend")\n',
        release="0.5.9",
    ),
    Fault(
        "what the aiter backend reads with scales has none",
        "rope-kv-store",
        "rope_kv_store.py",
        "        return aiter_uses_scales()\n",
        "        return False\n",
        release="0.5.9",
    ),
    Fault(
        "0.5.9: scales are stored where pristine aiter reads without",
        "rope-kv-store",
        "rope_kv_store.py",
        "    if not triton_uses_scales():\n        return False\n",
        "",
        release="0.5.9",
    ),
    Fault(
        "scales are stored where pristine aiter's decode reads without",
        "rope-kv-store",
        "rope_kv_store.py",
        "    return backend.use_triton_unified_attention or not ",
        "    return True or not ",
    ),
    Fault(
        "scales are stored for a backend that knows none",
        "rope-kv-store",
        "rope_kv_store.py",
        '        return _is(backend, "TritonAttnBackend") and',
        "        return",
    ),
    Fault(
        "scales are forgotten where unified attention reads with them",
        "rope-kv-store",
        "rope_kv_store.py",
        "    return backend.use_triton_unified_attention or not ",
        "    return not ",
    ),
    Fault(
        "the backend at hand decides, whatever reads the cache beside it",
        "rope-kv-store",
        "kv_cache.py",
        "    names = {*server.get_attention_backends(), ",
        "    names = {",
        release="0.5.9",
    ),
    Fault(
        "two overlapping batches hide the backend that each of them has for decode",
        "rope-kv-store",
        "rope_kv_store.py",
        "        else:\n            return backend\n",
        "        return getattr(backend, 'primary', backend)\n",
    ),
    Fault(
        "0.5.9: rope stores and attention stores again",
        "rope-kv-store",
        "sglang/srt/models/utils.py",
        "        return rocm_rope_kv_store.enabled(forward_batch)",
        "        return not rocm_rope_kv_store.enabled(forward_batch)",
        release="0.5.9",
    ),
    Fault(
        "0.5.9: the native rope does not store",
        "rope-kv-store",
        "sglang/srt/layers/rotary_embedding.py",
        """            return rocm_rope_kv_store.rotate_then_store(
                self.forward_native,
                positions,
                query,
                key,
                offsets,
                fused_set_kv_buffer_arg,
            )""",
        "            return self.forward_native(positions, query, key, offsets)",
        release="0.5.9",
    ),
]
WRITE_FAULTS = [
    Fault(
        "decode stores without the scales",  # sglang#23620
        "fp8-kv-write",
        BACKEND,
        """                rocm_fp8_kv_write.save(
                    forward_batch, layer, forward_batch.out_cache_loc, k, v
                )""",
        """                forward_batch.token_to_kv_pool.set_kv_buffer(
                    layer, forward_batch.out_cache_loc, k, v
                )""",
    ),
    Fault(
        "decode reads V with the k scale",  # sglang#21315
        "fp8-kv-write",
        BACKEND,
        """                k_descale, v_descale = rocm_fp8_kv_write.descales(self, layer)

        if save_kv_cache:""",
        """                k_descale = v_descale = rocm_fp8_kv_write.descales(self, layer)[0]

        if save_kv_cache:""",
    ),
    Fault(
        "ragged decode forgets the v scale",
        "fp8-kv-write",
        BACKEND,
        "                    v_scale,\n                    None,\n",
        "                    self.v_scale,\n                    None,\n",
    ),
    Fault(
        "ragged decode forgets the k scale",
        "fp8-kv-write",
        BACKEND,
        "                    k_scale,\n                    v_scale,\n",
        "                    self.k_scale,\n                    v_scale,\n",
    ),
    Fault(
        "ragged decode converts the whole pool",  # sglang#24129
        "fp8-kv-write",
        BACKEND,
        """                if rocm_fp8_kv_write.ACTIVE and self.kv_cache_dtype == fp8_dtype:
                    q, k_cache""",
        """                if rocm_fp8_kv_write.ACTIVE and q is None:
                    q, k_cache""",
    ),
    Fault(
        "a cached prefix is read without its scales",
        "fp8-kv-write",
        BACKEND,
        "                    *rocm_fp8_kv_write.float_scales(layer, k_descale),\n",
        "                    1.0,\n                    1.0,\n",
    ),
    Fault(
        "prefill's q overflows as it is cast",
        "fp8-kv-write",
        BACKEND,
        "                q = rocm_fp8_kv_write.saturated(q)\n",
        "",
    ),
    Fault(
        "prefill's q is descaled by the k scale",
        "fp8-kv-write",
        BACKEND,
        "                    q_descale = self.k_scale  # q has just been cast unscaled\n",
        "                    pass\n",
    ),
    Fault(
        "the live k is divided in place",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "    write_kv(k, v, cache, slots, k_scale, v_scale)\n",
        "    write_kv(k if k_scale is None else k.div_(k_scale), v, cache, slots, None, v_scale)\n",
    ),
    Fault(
        "the scale is applied twice",
        "fp8-kv-write",
        "kv_cache.py",
        " else _quotient(y, scale)\n",
        " else _quotient(_quotient(y, scale), scale)\n",
    ),
    Fault(
        "the quotient by a scale is a product with its inverse",
        "fp8-kv-write",
        "kv_cache.py",
        "    return tl.fma(x, high, x * low)",
        "    return x * inverse",
    ),
    Fault(
        "the rest of a scale's inverse is rounded down",
        "fp8-kv-write",
        "kv_cache.py",
        "(1.0 + 2.0**-20)",
        "(1.0 - 2.0**-20)",
    ),
    Fault(
        "fp32 is divided as 16-bit numbers are",
        "fp8-kv-write",
        "kv_cache.py",
        "tl.div_rn(y, scale) if x.dtype == tl.float32 else _quotient(y, scale)",
        "_quotient(y, scale)",
    ),
    Fault(
        "K and V are written in each other's place",
        "fp8-kv-write",
        "fp8_kv_write_kernel.py",
        "        cache.k,\n        cache.v,",
        "        cache.v,\n        cache.k,",
    ),
    Fault(
        "slots are read one token late",
        "fp8-kv-write",
        "kv_cache.py",
        "    slot = tl.load(slots + t * stride, mask=t < n, other=-1).to(tl.int64)",
        "    slot = tl.load(slots + (t + 1) * stride, mask=t + 1 < n, other=-1).to(tl.int64)",
    ),
    Fault(
        "rows with a slot of -1 are written",
        "fp8-kv-write",
        "fp8_kv_write_kernel.py",
        "    live = slot >= 0\n",
        "    live = (slot >= -1) & (t < n)\n",
    ),
    Fault(
        "nothing is clamped",
        "fp8-kv-write",
        "e4m3.py",
        "    return tl.clamp(x, -MAX, MAX, propagate_nan=tl.PropagateNan.ALL)",
        "    return x",
    ),
    Fault(
        "the clamp is at 224, not at the format's 240",
        "fp8-kv-write",
        "e4m3.py",
        "torch.float8_e4m3fnuz: 240.0",
        "torch.float8_e4m3fnuz: 224.0",
    ),
    Fault(
        "e4m3 is truncated, not rounded",
        "fp8-kv-write",
        "kv_cache.py",
        "    y = cached(x, scale, MAX)\n",
        "    y = cached(x, scale, MAX)\n"
        "    y = (y.to(tl.int32, bitcast=True) & -1048576).to(tl.float32, bitcast=True)\n",
    ),
    Fault(
        "the write's grid is short by one",
        "fp8-kv-write",
        "fp8_kv_write_kernel.py",
        "(triton.cdiv(n, block_t),)",
        "(max(n // block_t, 1),)",
    ),
    Fault(
        "aiter's backend uses scales beside one that knows none",
        "fp8-kv-write",
        "kv_cache.py",
        '({"aiter", "triton"} if triton_uses_scales() else {"aiter"})',
        "names",
    ),
    Fault(
        "the scales of another server's backend are taken for ours",
        "fp8-kv-write",
        "kv_cache.py",
        '        names.add("triton")\n',
        "        pass\n",
        release="0.5.9",
    ),
    Fault(
        "a scale that is a float reaches a reader of tensors",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "scale.float() if isinstance(scale, torch.Tensor) else _constant(scale, one.device)",
        "scale",
    ),
    Fault(
        "the JSON file's scales stay floats",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "                if isinstance(scale, float):",
        "                if scale is layer:",
    ),
    Fault(
        "Qwen3's fused decode stores without the scales",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "    return any(_as_float(*each) != 1.0 ",
        "    return any(_as_float(*each) == 0.0 ",
    ),
    Fault(
        "exact decode rounds q and the weights to FP8",
        "fp8-kv-write",
        "fp8_kv_write.py",
        " and not _exact_decode()\n",
        "\n",
    ),
    Fault(
        "heads that the operator cuts short are handed to it unsaid",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "_HEADS_IN_16_BITS = (64, 128, 192, 256)",
        "_HEADS_IN_16_BITS = range(512)",
    ),
]
OLDER = {"release": "0.5.9"}
OLDER_FAULTS = [
    Fault(
        "0.5.9's k_norm stays in fp32",
        "layernorm",
        INDEXER,
        "dtype=torch.bfloat16 if rocm_layernorm.ACTIVE else torch.float32,",
        "dtype=torch.float32,",
        **OLDER,
    ),
    Fault(
        "0.5.9's LayerNorm is never ours",
        "layernorm",
        "sglang/srt/layers/layernorm.py",
        "if rocm_layernorm.ACTIVE and rocm_layernorm.fits(self, x):",
        "if rocm_layernorm.ACTIVE and x is None:",
        **OLDER,
    ),
    Fault(
        "a short prefill of 0.5.9 stores no index keys",
        "indexer",
        INDEXER,
        """        if rocm_indexer.ACTIVE and rocm_indexer.store_index_k(
            self, forward_batch, layer_id, key
        ):
            k_fp8""",
        """        if rocm_indexer.ACTIVE:
            k_fp8""",
        **OLDER,
    ),
    Fault(
        "decode of 0.5.9 stores a query for the index key",
        "indexer",
        INDEXER,
        """                if rocm_indexer.ACTIVE and rocm_indexer.store_index_k(
                    self, forward_batch, layer_id, key
                ):""",
        """                if rocm_indexer.ACTIVE and rocm_indexer.store_index_k(
                    self, forward_batch, layer_id, query[:, 0]
                ):""",
        **OLDER,
    ),
    Fault(
        "decode of 0.5.9 quantises and stores its index keys again",
        "indexer",
        INDEXER,
        """                    k_fp8 = None  # stored
                else:
                    k_fp8, k_scale =""",
        """                    pass
                if True:
                    k_fp8, k_scale =""",
        **OLDER,
    ),
    Fault(
        "0.5.9's head gates lack the scale of q",
        "indexer",
        INDEXER,
        "            return rocm_indexer.head_gate(self, x, q_scale)",
        "            return rocm_indexer.head_gate(self, x, torch.ones_like(q_scale))",
        **OLDER,
    ),
    Fault(
        "decode of 0.5.9 stores without the scales",  # sglang#23620
        "fp8-kv-write",
        BACKEND,
        "                scales = rocm_fp8_kv_write.scales(layer)",
        "                pass",
        **OLDER,
    ),
    Fault(
        "0.5.9's pool stores a second time",
        "fp8-kv-write",
        POOL,
        "            self, layer_id, loc, cache_k, cache_v, k_scale, v_scale\n        ):\n"
        "            return\n",
        "            self, layer_id, loc, cache_k, cache_v, k_scale, v_scale\n        ):\n"
        "            pass\n",
        **OLDER,
    ),
    Fault(
        "decode of 0.5.9 converts the whole pool",  # sglang#24129
        "fp8-kv-write",
        BACKEND,
        """            if rocm_fp8_kv_write.ACTIVE and self.kv_cache_dtype == fp8_dtype:
                q, k_cache""",
        """            if rocm_fp8_kv_write.ACTIVE and q is None:
                q, k_cache""",
        **OLDER,
    ),
    Fault(
        "prefill of 0.5.9 converts the whole pool",
        "fp8-kv-write",
        BACKEND,
        """            if rocm_fp8_kv_write.ACTIVE and self.kv_cache_dtype == fp8_dtype:
                k_cache, v_cache""",
        """            if rocm_fp8_kv_write.ACTIVE and q is None:
                k_cache, v_cache""",
        **OLDER,
    ),
    Fault(
        "decode of 0.5.9 converts the slots in use where aiter can read them",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "    if _DECODES_IN_FP8 and (head == 64 or head % 128 == 0):",
        "    if head == 0:",
        **OLDER,
    ),
    Fault(
        "aiter reads K by the v scale, and V by the k scale",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "    return _as_tensor(k_scale, backend.k_scale), _as_tensor(v_scale, backend.v_scale)\n",
        "    return _as_tensor(v_scale, backend.v_scale), _as_tensor(k_scale, backend.k_scale)\n",
        **OLDER,
    ),
    Fault(
        "q overflows as aiter casts it",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "    return q.clamp(-largest, largest)\n",
        "    return q\n",
        **OLDER,
    ),
    Fault(
        "prefill of 0.5.9 reads without the scales",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "kv_indptr[-1:], *scales(layer), dtype)\n",
        "kv_indptr[-1:], None, None, dtype)\n",
        **OLDER,
    ),
    Fault(
        "V is multiplied by the k scale as it is converted",
        "fp8-kv-write",
        "fp8_kv_write_widen_kernel.py",
        "        kernel_scale(v_scale),",
        "        kernel_scale(k_scale),",
        **OLDER,
    ),
    Fault(
        "the last slots in use are not converted",
        "fp8-kv-write",
        "fp8_kv_write_widen_kernel.py",
        "    for first in range(begin, n, tl.num_programs(0) * BLOCK_T):",
        "    for first in range(begin, n - BLOCK_T, tl.num_programs(0) * BLOCK_T):",
        **OLDER,
    ),
    Fault(
        "a batch longer than the programs is not walked to its end",
        "fp8-kv-write",
        "fp8_kv_write_widen_kernel.py",
        "    for first in range(begin, n, tl.num_programs(0) * BLOCK_T):",
        "    for first in range(begin, min(n, begin + 1), BLOCK_T):",
        **OLDER,
    ),
]
# TileLang's programs run on a GPU alone.
ON_A_GPU = {"arch": "gfx950", "platform": "cuda"}
PROGRAM_FAULTS = [
    Fault(
        "a missing key counts as one of zeros",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla_tiles.py",
        "slot_of[tile * keys + i] >= 0,",
        "slot_of[tile * keys + i] >= -1,",
        **ON_A_GPU,
    ),
    Fault(
        "parts of attention weigh the same, whatever their sums",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla_combine.py",
        "weight[s] = T.exp2(weight[s] - top[0])",
        "weight[s] = T.exp2(top[0] - top[0])",
        **ON_A_GPU,
    ),
    Fault(
        "columns of the result stay in the order of the LDS",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla_tiles.py",
        "out_shared[h, place(d)]",
        "out_shared[h, d]",
        **ON_A_GPU,
    ),
    Fault(
        "what was added up is not shrunk when the maximum grows",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla_tiles.py",
        "acc[d, h] *= shrink_acc[h]",
        "acc[d, h] *= T.float32(1.0)",
        **ON_A_GPU,
    ),
    Fault(
        "sums of the probabilities are not shrunk when the maximum grows",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla_tiles.py",
        "sums[i, h] * shrink[h] + scores[i, h]",
        "sums[i, h] + scores[i, h]",
        **ON_A_GPU,
    ),
    Fault(
        "scores are those of the rotary columns alone",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla_tiles.py",
        "T.gemm(kv_tail, q_tail, scores, transpose_B=True, policy=policy)",
        "T.gemm(kv_tail, q_tail, scores, transpose_B=True, clear_accum=True, policy=policy)",
        **ON_A_GPU,
    ),
    Fault(
        "the last tile of keys is left out",
        "nsa-fp8-kv",
        "nsa_fp8_kv_sparse_mla_tiles.py",
        "for tile in T.serial(rows // keys):",
        "for tile in T.serial(rows // keys - 1):",
        **ON_A_GPU,
    ),
]
# What the files of tests that others seldom reach have to catch by themselves.
WHOLE_MODEL_FAULTS = [
    Fault(
        "a graph is captured with the slots of its capture",
        "fp8-kv-write",
        "fp8_kv_write_kernel.py",
        "    n = min(k.shape[0], slots.shape[0])\n",
        "    slots = torch.tensor(slots.tolist(), device=slots.device)\n"
        "    n = min(k.shape[0], slots.shape[0])\n",
        "gfx950",
        tests="tests/engine/test_graph.py",
    ),
    Fault(
        "a server stores V without its scale",
        "fp8-kv-write",
        "fp8_kv_write.py",
        "    write_kv(k, v, cache, slots, k_scale, v_scale)\n",
        "    write_kv(k, v, cache, slots, k_scale, None)\n",
        "gfx950",
        tests="tests/engine/test_engine.py",
    ),
    Fault(
        "index keys of a long context are read by a scale that is squared",
        "indexer",
        "indexer_kernel.py",
        "    tl.store(scales[:, None] + lane, scale[:, None],",
        "    tl.store(scales[:, None] + lane, (scale * scale)[:, None],",
        tests="tests/engine/test_sparse_selection.py",
    ),
]
FAULTS = [
    *LAYERNORM_FAULTS,
    *INDEXER_FAULTS,
    *NSA_FAULTS,
    *ROPE_FAULTS,
    *WRITE_FAULTS,
    *OLDER_FAULTS,
    *PROGRAM_FAULTS,
    *WHOLE_MODEL_FAULTS,
]
