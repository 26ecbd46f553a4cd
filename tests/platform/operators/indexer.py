"""The NSA indexer: quantise and store K, logits over it, the best keys of each query."""

import torch

from . import chip, need, need_dtype, need_inside, need_shape, operator, saturate


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
    width, row = k.shape[1], kv_cache.shape[2]
    need(width % 128 == 0, f"{name}: k of width {width}, expected blocks of 128")
    need(row >= width + width // 32, f"{name}: cache rows of {row}, too short for {width}")
    need(k.shape[0] > 0, f"{name}: no tokens, an empty grid")
    need(k.shape[0] <= slot_mapping.shape[0], f"{name}: more keys than slots, it reads past them")
    blocks = k.float().unflatten(-1, (-1, 128))
    amax = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4)
    scale = amax / torch.full_like(amax, chip().fp8_max)  # by a number, CUDA would multiply
    if scale_fmt == "ue8m0":
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    quantised = saturate(blocks * (1 / scale), chip().fp8_dtype).flatten(1).view(torch.uint8)
    scales = scale.flatten(1).contiguous().view(torch.uint8)
    pages, page, _ = kv_cache.shape
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
    name = "fp8_mqa_logits"
    need_dtype(name, chip().fp8_dtype, Q=Q, KV=KV)
    need_dtype(name, torch.float32, kv_scales=kv_scales, weights=weights)
    for size in Q.shape[1:]:
        assert size & (size - 1) == 0, f"{name}: {size} is no power of two"
    need_shape(name, (len(KV), Q.shape[2]), KV=KV)
    need(kv_scales.numel() == len(KV), f"{name}: {kv_scales.numel()} kv_scales for {len(KV)} keys")
    need_shape(name, Q.shape[:2], weights=weights)
    need_shape(name, Q.shape[:1], cu_starts=cu_starts, cu_ends=cu_ends)
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
    need(not Preshuffle, f"{name}: Preshuffle")
    need(KVBlockSize == 1, f"{name}: KVBlockSize {KVBlockSize}, expected 1")
    batch, tokens, heads, width = q_fp8.shape
    need_dtype(name, chip().fp8_dtype, q_fp8=q_fp8)
    need_dtype(name, torch.float32, weights=weights, out_logits=out_logits)
    need_shape(name, (batch * tokens, heads), weights=weights)
    need_shape(name, (batch * tokens, max_model_len), out_logits=out_logits)
    need(kv_cache.element_size() == 1, f"{name}: kv_cache of {kv_cache.dtype}")
    need_shape(name, (len(kv_cache), 1, 1, width + 4), kv_cache=kv_cache)
    need_dtype(name, torch.int32, context_lens=context_lens, kv_indices=kv_indices)
    need_shape(name, (batch,), context_lens=context_lens)
    rows = kv_cache.view(torch.uint8).flatten(1)
    for b, context in enumerate(context_lens.tolist()):
        for limit, size in (("max_model_len", max_model_len), ("kv_indices", kv_indices.shape[1])):
            need(context <= size, f"{name}: {limit} for {size} keys, expected at least {context}")
        need_inside(name, len(rows), kv_indices=kv_indices[b, :context])
        page = rows[kv_indices[b, :context].long()]
        key = page[:, :width].contiguous().view(chip().fp8_dtype).float()
        scale = page[:, width : width + 4].contiguous().view(torch.float32)[:, 0]
        for j in range(tokens):
            row = b * tokens + j
            scores = (q_fp8[b, j].float() @ key.T * scale).relu()
            out_logits[row, :context] = (scores * weights[row].float()[:, None]).sum(0)
            out_logits[row, context - tokens + j + 1 : context] = -torch.inf


def _best(name, score, lengths, topk, row_starts):
    """Positions of the best 2048 of each row, -1 where it has fewer; the order is free.

    They count from the row's start. Of a row that has no more than 2048, no score is looked at.
    """
    need(topk == 2048, f"{name}: topk {topk}, expected 2048")
    need_dtype(name, torch.float32, score=score)
    need(score.stride(1) == 1, f"{name}: score of strides {score.stride()}")
    starts = torch.zeros_like(lengths) if row_starts is None else row_starts
    need_dtype(name, torch.int32, lengths=lengths, row_starts=starts)
    need_shape(name, score.shape[:1], lengths=lengths, row_starts=starts)
    best = torch.full((score.shape[0], topk), -1, dtype=torch.int32, device=score.device)
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        if length <= topk:
            best[row, : max(length, 0)] = torch.arange(max(length, 0), device=score.device)
            continue
        end = start + length
        need(
            start >= 0 and end <= score.shape[1],
            f"{name}: lengths to {end} from row_starts {start}, expected within {score.shape[1]}",
        )
        best[row] = score[row, start:end].topk(topk).indices.to(torch.int32)
    return best


@operator("sgl_kernel.fast_topk_v2")
def fast_topk_v2(score, lengths, topk, row_starts=None):
    return _best("fast_topk_v2", score, lengths, topk, row_starts)


@operator("sgl_kernel.fast_topk_transform_fused")
def fast_topk_transform_fused(
    score, lengths, page_table_size_1, cu_seqlens_q, topk, row_starts=None
):
    name = "fast_topk_transform_fused"
    best = _best(name, score, lengths, topk, row_starts)
    need_dtype(name, torch.int32, page_table_size_1=page_table_size_1, cu_seqlens_q=cu_seqlens_q)
    sequence = torch.arange(len(cu_seqlens_q) - 1, device=score.device)
    need(
        len(page_table_size_1) == len(sequence),
        f"{name}: page_table_size_1 of {len(page_table_size_1)}, expected {len(sequence)} rows",
    )
    if row_starts is not None or len(sequence) != len(score):  # else of each row its own
        sequence = sequence.repeat_interleave(cu_seqlens_q.diff().long())
        need(
            len(sequence) == len(score),
            f"{name}: cu_seqlens_q to {len(sequence)}, expected {len(score)}",
        )
    table = page_table_size_1[sequence]
    need_inside(f"{name}: page_table_size_1", table.shape[1], position=best[best >= 0])
    slots = table.gather(1, best.long().clamp(min=0))
    return torch.where(best >= 0, slots, best)


@operator("sgl_kernel.fast_topk_transform_ragged_fused")
def fast_topk_transform_ragged_fused(score, lengths, topk_indices_offset, topk, row_starts=None):
    name = "fast_topk_transform_ragged_fused"
    best = _best(name, score, lengths, topk, row_starts)
    need_dtype(name, torch.int32, topk_indices_offset=topk_indices_offset)
    need_shape(name, score.shape[:1], topk_indices_offset=topk_indices_offset)
    return torch.where(best >= 0, best + topk_indices_offset[:, None], best)
