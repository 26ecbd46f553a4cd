"""aiter's attention over a paged KV cache, for heads of one size."""

import torch

from . import (
    chip,
    need,
    need_dtype,
    need_inside,
    need_longest,
    need_scales,
    need_shape,
    operator,
    unclamped,
)


def visible(queries: int, keys: int, causal: bool, left: int, device) -> torch.Tensor:
    """Which keys each query sees, the last query being at the last key; `left` keys before it."""
    position = torch.arange(queries, device=device)[:, None] + keys - queries
    key = torch.arange(keys, device=device)[None]
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if causal:
        mask &= key <= position
    if left >= 0:
        mask &= key >= position - left
    return mask


def softmax_attention(q, k, v, scale, mask, sink=None, softcap=0.0):
    """fp32 attention of q [Q, H, D] on k, v [K, H_kv, D]; a query that sees nothing gets 0."""
    groups = q.shape[1] // k.shape[1]
    k, v = (each.float().repeat_interleave(groups, 1) for each in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~mask, -torch.inf)
    if sink is not None:
        extra = sink.float().view(-1, 1, 1).expand(-1, logits.shape[1], 1)
        logits = torch.cat([logits, extra], -1)
    weights = logits.softmax(-1)
    if sink is None:
        weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return torch.einsum("hqk,khd->qhd", weights[..., : k.shape[0]], v)


def descaled(cache, scale):
    """What a kernel reads: the first value of the scale alone."""
    return cache.float() if scale is None else cache.float() * scale.reshape(-1)[0].float()


HALF = (torch.bfloat16, torch.float16)


def _need_cache(name, q, k, v, sinks):
    """Keys and values of the query's heads, of a type that the chip has."""
    need_dtype(name, (*HALF, chip().fp8_dtype), k=k)
    need_dtype(name, k.dtype, v=v)
    need_shape(name, k.shape, v=v)
    heads, width = q.shape[1:]
    need(k.shape[-1] == width, f"{name}: k of width {k.shape[-1]}, expected {width}")
    need(heads % k.shape[-2] == 0, f"{name}: {heads} heads on {k.shape[-2]}")
    if sinks is not None:
        need_shape(name, (heads,), sinks=sinks)


def _need_descales(name, cache, **descales):
    """A scale for each FP8 tensor, and none for others: the kernels do not look at it there."""
    for argument, scale in descales.items():
        given = "None" if scale is None else "given"
        need(
            (scale is not None) == (cache.dtype is chip().fp8_dtype),
            f"{name}: {argument} is {given} for {cache.dtype}",
        )


@operator("aiter.flash_attn_varlen_func")
def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    softmax_scale=None,
    causal=False,
):
    name = "flash_attn_varlen_func"
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    need_dtype(name, HALF, q=q)
    need_dtype(name, q.dtype, k=k, v=v)
    need_dtype(name, torch.int32, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    need_shape(name, cu_seqlens_q.shape, cu_seqlens_k=cu_seqlens_k)
    need_shape(name, (*k.shape[:2], q.shape[-1]), k=k)
    need_shape(name, (*k.shape[:2], v.shape[-1]), v=v)
    need(q.shape[1] % k.shape[1] == 0, f"{name}: {q.shape[1]} heads on {k.shape[1]}")
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[-1])
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    need(queries[-1] == len(q), f"{name}: cu_seqlens_q to {queries[-1]}, expected {len(q)}")
    need(keys[-1] == len(k), f"{name}: cu_seqlens_k to {keys[-1]}, expected {len(k)}")
    need_longest(name, queries, max_seqlen_q=max_seqlen_q)
    need_longest(name, keys, max_seqlen_k=max_seqlen_k)
    for b in range(len(queries) - 1):
        rows, columns = slice(*queries[b : b + 2]), slice(*keys[b : b + 2])
        mask = visible(queries[b + 1] - queries[b], keys[b + 1] - keys[b], causal, -1, q.device)
        out[rows] = softmax_attention(q[rows], k[columns], v[columns], scale, mask).to(out.dtype)
    return out


@operator("aiter.mha_batch_prefill_func")
def mha_batch_prefill_func(
    q,
    k,
    v,
    cu_seqlens_q,
    kv_indptr,
    kv_page_indices,
    max_seqlen_q,
    max_seqlen_k,
    causal=False,
    logits_soft_cap=0.0,
    alibi_slopes=None,
    return_lse=False,
    return_attn_probs=False,
    window_size=(-1, -1),
    sink_ptr=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
):
    name = "mha_batch_prefill_func"
    need(alibi_slopes is None, f"{name}: alibi_slopes")
    need(not return_lse and not return_attn_probs, f"{name}: return_lse or return_attn_probs")
    need(k.dim() == 3, f"{name}: cache of shape {tuple(k.shape)}, one token a page is implemented")
    need(causal or window_size == (-1, -1), f"{name}: window_size {window_size}, not causal")
    need(window_size[1] in (-1, 0), f"{name}: window_size {window_size}")
    _need_cache(name, q, k, v, sink_ptr)
    fp8 = q.dtype is chip().fp8_dtype
    need(k.dtype == q.dtype, f"{name}: {q.dtype} query on {k.dtype} cache")
    _need_descales(name, q, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    need_scales(name, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    indices = {"cu_seqlens_q": cu_seqlens_q, "kv_indptr": kv_indptr}
    need_dtype(name, torch.int32, **indices, kv_page_indices=kv_page_indices)
    need_shape(name, cu_seqlens_q.shape, kv_indptr=kv_indptr)
    out = q.new_empty(q.shape, dtype=torch.bfloat16 if fp8 else q.dtype)
    queries, keys, scale = cu_seqlens_q.tolist(), kv_indptr.tolist(), q.shape[-1] ** -0.5
    need(queries[-1] == len(q), f"{name}: cu_seqlens_q to {queries[-1]}, expected {len(q)}")
    need_longest(name, queries, max_seqlen_q=max_seqlen_q)
    need_longest(name, keys, max_seqlen_k=max_seqlen_k)
    read = kv_page_indices[: keys[-1]]
    need(len(read) == keys[-1], f"{name}: {len(read)} kv_page_indices, expected {keys[-1]}")
    need_inside(name, len(k), kv_page_indices=read)
    for b in range(len(queries) - 1):
        rows, slots = slice(*queries[b : b + 2]), kv_page_indices[keys[b] : keys[b + 1]].long()
        result = softmax_attention(
            descaled(q[rows], q_descale),
            descaled(k[slots], k_descale),
            descaled(v[slots], v_descale),
            scale,
            visible(queries[b + 1] - queries[b], len(slots), causal, window_size[0], q.device),
            sink_ptr,
            logits_soft_cap,
        )
        out[rows] = result.to(out.dtype)
    return out


@operator("aiter.paged_attention_ragged")
def paged_attention_ragged(
    out,
    workspace,
    query,
    key_cache,
    value_cache,
    scale,
    kv_indptr,
    kv_page_indices,
    kv_last_page_lens,
    block_size,
    max_num_partitions,
    alibi_slopes,
    kv_cache_dtype,
    kv_cache_layout,
    logits_soft_cap,
    k_scale,
    v_scale,
    fp8_out_scale=None,
    partition_size=256,
):
    name = "paged_attention_ragged"
    need(block_size == 1, f"{name}: block_size {block_size}")
    need(alibi_slopes is None and fp8_out_scale is None, f"{name}: alibi_slopes or fp8_out_scale")
    need(kv_cache_layout == "NHD", f"{name}: {kv_cache_layout} layout")
    need(partition_size == 256, f"{name}: partition_size {partition_size}")
    need_dtype(name, torch.int32, kv_indptr=kv_indptr, kv_page_indices=kv_page_indices)
    keys = kv_indptr[: len(query) + 1].tolist()
    need(len(keys) == len(query) + 1, f"{name}: kv_indptr for {len(keys) - 1} of {len(query)}")
    read = kv_page_indices[: keys[-1]]
    need(len(read) == keys[-1], f"{name}: {len(read)} kv_page_indices, expected {keys[-1]}")
    need_inside(name, len(key_cache), kv_page_indices=read)
    need_longest(name, keys, max_num_partitions=max_num_partitions * partition_size)
    lengths = kv_last_page_lens[: len(query)]
    need(
        len(lengths) == len(query) and bool((lengths == 1).all()),
        f"{name}: kv_last_page_lens {lengths.tolist()}, expected 1 for each of {len(query)}",
    )
    need_shape(name, query.shape, out=out)
    for b in range(query.shape[0]):
        slots = kv_page_indices[keys[b] : keys[b + 1]].long()
        q, k, v = query[b : b + 1], key_cache[slots, 0], value_cache[slots, 0]
        if kv_cache_dtype == "auto":
            need(k.dtype == v.dtype == q.dtype, f"{name}: {k.dtype} cache for {q.dtype} query")
            # Whole loops over 64 columns of V, and over 32 of K in each part of at most 128.
            head = q.shape[-1]
            whole = head % 64 == 0 and head % (32 * -(-head // 128)) == 0
            need(whole, f"{name}: heads of {head}, of which its loops leave out columns")
            # k_scale and v_scale are not looked at.
            mask = torch.ones(1, len(slots), dtype=torch.bool, device=q.device)
            result = softmax_attention(q, k, v, scale, mask, softcap=logits_soft_cap)
        else:
            need(kv_cache_dtype in ("fp8", "fp8_e4m3"), f"{name}: {kv_cache_dtype} cache")
            result = fp8_decode(name, q, k, v, scale, k_scale, v_scale, logits_soft_cap)
        out[b : b + 1] = result.to(out.dtype)


def fp8_decode(name, q, k, v, scale, k_scale, v_scale, softcap=0.0):
    """q [1, H, D] on k and v [K, H_kv, D], multiplied in FP8, 256 keys at a time, joined in fp32.

    q is cast as it is and overflows to NaN; the weights of 256 keys, which add up to 1, are cast.
    """
    fp8, (_, heads, head) = chip().fp8_dtype, q.shape
    need(k.dtype is fp8 and v.dtype is fp8, f"{name}: {k.dtype} read as {fp8}")
    need(q.dtype in (torch.bfloat16, torch.float16), f"{name}: {q.dtype} query on FP8")
    need(head == 64 or head % 128 == 0, f"{name}: FP8 rows of {head}, not 64 nor 128 at a time")
    for each in (k_scale, v_scale):
        need(each.dtype is torch.float32 and each.numel() == 1, f"{name}: scales {each}")
    q = unclamped(q.float(), fp8).float()[0]
    k, v = (each.float().repeat_interleave(heads // k.shape[1], 1) for each in (k, v))
    logits = torch.einsum("hd,khd->hk", q, k) * (scale * float(k_scale))
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    parts = []
    for some in range(0, len(k), 256):
        part = logits[:, some : some + 256]
        weights = unclamped(part.softmax(-1), fp8).float()
        out = torch.einsum("hk,khd->hd", weights, v[some : some + 256]) * float(v_scale)
        parts.append((part.logsumexp(-1), out.to(torch.bfloat16).float()))
    share = torch.stack([each for each, _ in parts]).softmax(0)
    return sum(w[:, None] * out for w, (_, out) in zip(share, parts, strict=True))[None]


@operator("aiter.ops.triton.attention.unified_attention.unified_attention")
def unified_attention(
    q,
    k,
    v,
    out,
    cu_seqlens_q,
    max_seqlen_q,
    seqused_k,
    max_seqlen_k,
    softmax_scale,
    causal,
    window_size,
    block_table,
    softcap,
    q_descale,
    k_descale,
    v_descale,
    alibi_slopes=None,
    output_scale=None,
    qq_bias=None,
    sinks=None,
):
    name = "unified_attention"
    assert causal, f"{name}: only causal attention is supported"
    assert q_descale is None, f"{name}: q scales are not supported"
    for given in (alibi_slopes, output_scale, qq_bias):
        need(given is None, f"{name}: alibi_slopes, output_scale or qq_bias")
    # The kernel has no right side of a window: causal attention sees nothing there.
    need(window_size[1] in (-1, 0), f"{name}: window_size {window_size}, expected -1 or 0 behind")
    need_dtype(name, HALF, q=q)
    need_shape(name, q.shape, out=out)
    _need_cache(name, q, k, v, sinks)
    _need_descales(name, k, k_descale=k_descale, v_descale=v_descale)
    queries, page, lengths = cu_seqlens_q.tolist(), k.shape[1], seqused_k.tolist()
    need(len(lengths) == len(queries) - 1, f"{name}: seqused_k for {len(lengths)} sequences")
    need(queries[-1] == len(q), f"{name}: cu_seqlens_q to {queries[-1]}, expected {len(q)}")
    need_longest(name, queries, max_seqlen_q=max_seqlen_q)
    longest = max(lengths, default=0)
    for limit, size in (
        ("max_seqlen_k", max_seqlen_k),
        ("block_table", block_table.shape[1] * page),
    ):
        need(longest <= size, f"{name}: {limit} for {size} keys, expected at least {longest}")
    for b, length in enumerate(lengths):
        rows = slice(*queries[b : b + 2])
        token = torch.arange(length, device=q.device)
        need_inside(name, len(k), block_table=block_table[b, : -(-length // page)])
        block, offset = block_table[b].long()[token // page], token % page
        result = softmax_attention(
            q[rows],
            descaled(k[block, offset], k_descale).to(q.dtype),
            descaled(v[block, offset], v_descale).to(q.dtype),
            softmax_scale,
            visible(queries[b + 1] - queries[b], length, True, window_size[0], q.device),
            sinks,
            softcap,
        )
        out[rows] = result.to(out.dtype)
