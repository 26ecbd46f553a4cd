"""The NSA indexer: quantise and store K, logits over it, the best keys of each query."""

import torch

from . import chip, need, operator, saturate


@operator("aiter.ops.cache.indexer_k_quant_and_cache", "aiter.indexer_k_quant_and_cache")
def indexer_k_quant_and_cache(k, kv_cache, slot_mapping, quant_block_size, scale_fmt):
    """As of aiter v0.1.11, which the images of 0.5.10 carry: no preshuffle."""
    name = "indexer_k_quant_and_cache"
    need(k.dim() == 2 and k.is_contiguous(), f"{name}: k of strides {k.stride()}")
    need(k.dtype in (torch.float32, torch.float16, torch.bfloat16), f"{name}: k of {k.dtype}")
    need(kv_cache.dim() == 3 and kv_cache.is_contiguous(), f"{name}: cache {tuple(kv_cache.shape)}")
    need(kv_cache.element_size() == 1, f"{name}: cache of {kv_cache.dtype}")
    need(slot_mapping.dtype == torch.int64, f"{name}: slots of {slot_mapping.dtype}")
    need(slot_mapping.is_contiguous(), f"{name}: slots that are not contiguous")
    need(quant_block_size == 128, f"{name}: blocks of {quant_block_size}")
    need(k.shape[0] > 0, f"{name}: no tokens, an empty grid")
    need(k.shape[0] <= slot_mapping.shape[0], f"{name}: more keys than slots, it reads past them")
    blocks = k.float().unflatten(-1, (-1, 128))
    amax = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4)
    scale = amax / torch.full_like(amax, chip().fp8_max)  # by a number, CUDA would multiply
    if scale_fmt == "ue8m0":
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    quantised = saturate(blocks * (1 / scale), chip().fp8_dtype).flatten(1).view(torch.uint8)
    scales = scale.flatten(1).contiguous().view(torch.uint8)
    pages, page, row = kv_cache.shape
    width = k.shape[1]
    memory = kv_cache.view(torch.uint8).view(pages, page * row)
    values = memory[:, : page * width].view(pages, page, width)
    scale_bytes = scales.shape[1]
    tail = memory[:, page * width : page * (width + scale_bytes)].view(pages, page, scale_bytes)
    slots = slot_mapping[: k.shape[0]]
    kept = slots >= 0
    need(
        bool((slots < pages * page).all()),
        f"{name}: a slot past the cache, which it does not check",
    )
    block, offset = slots[kept] // page, slots[kept] % page
    values[block, offset] = quantised[kept]
    tail[block, offset] = scales[kept]


@operator("aiter.ops.triton.fp8_mqa_logits.fp8_mqa_logits")
def fp8_mqa_logits(Q, KV, kv_scales, weights, cu_starts, cu_ends):
    for operand in (Q, KV):
        need(operand.dtype is chip().fp8_dtype, f"fp8_mqa_logits: operand of {operand.dtype}")
    for size in Q.shape[1:]:
        assert size & (size - 1) == 0, f"fp8_mqa_logits: {size} is no power of two"
    scores = torch.einsum("qhd,kd->qhk", Q.float(), KV.float()) * kv_scales.float().view(-1)
    logits = torch.einsum("qhk,qh->qk", scores.relu(), weights.float())
    key = torch.arange(KV.shape[0], device=Q.device)
    seen = (key >= cu_starts[:, None]) & (key < cu_ends[:, None])
    return logits.masked_fill(~seen, -torch.inf)


@operator("aiter.ops.triton.pa_mqa_logits.deepgemm_fp8_paged_mqa_logits")
def deepgemm_fp8_paged_mqa_logits(
    q_fp8,
    kv_cache,
    weights,
    out_logits,
    context_lens,
    kv_indices,
    max_model_len,
    Preshuffle=False,
    KVBlockSize=1,
    ChunkK=256,
    TotalCuCount=None,
    WavePerEU=2,
):
    """ChunkK, TotalCuCount and WavePerEU schedule the kernel. Past a context: untouched."""
    name = "deepgemm_fp8_paged_mqa_logits"
    need(not Preshuffle and KVBlockSize == 1, f"{name}: Preshuffle or KVBlockSize {KVBlockSize}")
    need(q_fp8.dtype is chip().fp8_dtype, f"{name}: query of {q_fp8.dtype}")
    need(out_logits.dtype == torch.float32, f"{name}: logits of {out_logits.dtype}")
    batch, tokens, _, width = q_fp8.shape
    rows = kv_cache.view(torch.uint8).flatten(1)
    for b in range(batch):
        context = int(context_lens[b])
        page = rows[kv_indices[b, :context].long()]
        key = page[:, :width].contiguous().view(chip().fp8_dtype).float()
        scale = page[:, width : width + 4].contiguous().view(torch.float32)[:, 0]
        for j in range(tokens):
            row = b * tokens + j
            scores = (q_fp8[b, j].float() @ key.T * scale).relu()
            out_logits[row, :context] = (scores * weights[row].float()[:, None]).sum(0)
            out_logits[row, context - tokens + j + 1 : context] = -torch.inf


def _best(score, lengths, topk, row_starts):
    """Positions of the best `topk` of each row, -1 where it has fewer; the order is free."""
    best = torch.full((score.shape[0], topk), -1, dtype=torch.int32, device=score.device)
    for row, length in enumerate(lengths.tolist()):
        start = 0 if row_starts is None else int(row_starts[row])
        if length <= topk:
            best[row, :length] = torch.arange(length, dtype=torch.int32, device=score.device)
        else:
            best[row] = score[row, start : start + length].topk(topk).indices.to(torch.int32)
    return best


@operator("sgl_kernel.fast_topk_v2")
def fast_topk_v2(score, lengths, topk, row_starts=None):
    return _best(score, lengths, topk, row_starts)


@operator("sgl_kernel.fast_topk_transform_fused")
def fast_topk_transform_fused(
    score, lengths, page_table_size_1, cu_seqlens_q, topk, row_starts=None
):
    best = _best(score, lengths, topk, row_starts)
    sequence = torch.arange(len(cu_seqlens_q) - 1, device=score.device)
    sequence = sequence.repeat_interleave(cu_seqlens_q.diff().long())
    table = page_table_size_1[sequence]
    slots = table.gather(1, best.long().clamp(0, table.shape[1] - 1)).to(torch.int32)
    return torch.where(best >= 0, slots, best)


@operator("sgl_kernel.fast_topk_transform_ragged_fused")
def fast_topk_transform_ragged_fused(score, lengths, topk_indices_offset, topk, row_starts=None):
    best = _best(score, lengths, topk, row_starts)
    return torch.where(best >= 0, best + topk_indices_offset[:, None].to(torch.int32), best)
