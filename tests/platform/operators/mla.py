"""aiter's absorbed MLA: one KV head whose first columns are the value."""

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
    provided,
)
from .attention import descaled, softmax_attention, visible


@operator("aiter.mla.mla_decode_fwd")
def mla_decode_fwd(
    q,
    kv_buffer,
    o,
    qo_indptr,
    kv_indptr,
    kv_indices,
    kv_last_page_lens,
    max_seqlen_q,
    page_size=1,
    nhead_kv=1,
    sm_scale=None,
    logit_cap=0.0,
    num_kv_splits=None,
    num_kv_splits_indptr=None,
    work_meta_data=None,
    work_indptr=None,
    work_info_set=None,
    reduce_indptr=None,
    reduce_final_map=None,
    reduce_partial_map=None,
    q_scale=None,
    kv_scale=None,
    intra_batch_mode=False,
    return_logits=False,
    return_lse=False,
):
    """The work and reduce tables and the splits schedule the kernel; they change no result."""
    name = "mla_decode_fwd"
    assert logit_cap <= 0, f"{name}: logit_cap is not supported"
    need(page_size == 1 and nhead_kv == 1, f"{name}: page_size {page_size}, nhead_kv {nhead_kv}")
    need(num_kv_splits_indptr is None, f"{name}: num_kv_splits_indptr")
    need(not return_logits and not return_lse, f"{name}: return_logits or return_lse")
    works = (work_meta_data, work_indptr, work_info_set)
    given = {each is not None for each in (*works, reduce_indptr, reduce_final_map)}
    given.add(reduce_partial_map is not None)
    need(len(given) == 1, f"{name}: some of the work and reduce tables, expected all or none")
    # With the tables the kernel is persistent, and folds multiples of 16 heads into batches of 16.
    heads = range(16, 129, 16) if given == {True} else (16, 32, 64, 128)
    need(q.shape[1] in heads, f"{name}: {q.shape[1]} heads, expected one of {[*heads]}")
    fp8 = chip().fp8_dtype
    need_dtype(name, (torch.bfloat16, fp8), q=q, kv_buffer=kv_buffer)
    if q.dtype is fp8:
        need_dtype(name, fp8, kv_buffer=kv_buffer)
        need(q_scale is not None, f"{name}: q_scale is None for {fp8}")
        need(kv_scale is not None, f"{name}: kv_scale is None for a query of {fp8}")
    else:
        need(q_scale is None or bool((q_scale == 1).all()), f"{name}: q_scale for {q.dtype}")
        need(kv_scale is None or kv_buffer.dtype is fp8, f"{name}: kv_scale for {kv_buffer.dtype}")
    need_scales(name, q_scale=q_scale, kv_scale=kv_scale)
    places = qo_indptr, kv_indptr, kv_indices, kv_last_page_lens
    _mla(name, q, kv_buffer, o, *places, max_seqlen_q, sm_scale, q_scale, kv_scale)
    return None, None


@operator("aiter.mla.mla_prefill_fwd")
def mla_prefill_fwd(
    q,
    kv_buffer,
    output,
    qo_indptr,
    kv_indptr,
    kv_indices,
    kv_last_page_lens,
    max_seqlen_q,
    sm_scale=None,
    logit_cap=0.0,
    num_kv_splits=None,
):
    name = "mla_prefill_fwd"
    assert logit_cap <= 0, f"{name}: logit_cap is not supported"
    need(num_kv_splits is None, f"{name}: num_kv_splits")
    need(q.shape[1] in (16, 128), f"{name}: {q.shape[1]} heads, expected 16 or 128")
    need_dtype(name, torch.bfloat16, q=q, kv_buffer=kv_buffer)
    need_shape(name, qo_indptr.shape, kv_indptr=kv_indptr)
    places = qo_indptr, kv_indptr, kv_indices, kv_last_page_lens
    _mla(name, q, kv_buffer, output, *places, max_seqlen_q, sm_scale, None, None)


def _mla(
    name,
    q,
    kv_buffer,
    out,
    qo_indptr,
    kv_indptr,
    kv_indices,
    kv_last_page_lens,
    max_seqlen_q,
    scale,
    q_scale,
    kv_scale,
):
    tokens, heads, row = q.shape
    need(q.is_contiguous(), f"{name}: a query that is not contiguous")
    need_shape(name, (len(kv_buffer), 1, 1, row), kv_buffer=kv_buffer)
    need_dtype(name, torch.bfloat16, out=out)
    need(out.shape[-1] <= row, f"{name}: out of width {out.shape[-1]}, expected at most {row}")
    need_shape(name, (tokens, heads, out.shape[-1]), out=out)
    _need_starts(name, qo_indptr, kv_indptr, kv_last_page_lens)
    need_dtype(name, torch.int32, kv_indices=kv_indices)
    queries = qo_indptr.tolist()
    keys = kv_indptr[: len(queries)].tolist()
    need(queries[-1] <= tokens, f"{name}: qo_indptr to {queries[-1]}, expected at most {tokens}")
    need_longest(name, queries, max_seqlen_q=max_seqlen_q)
    read = kv_indices[: keys[-1]]
    need(len(read) == keys[-1], f"{name}: {len(read)} kv_indices, expected {keys[-1]}")
    need_inside(name, len(kv_buffer), kv_indices=read)
    rows, width = kv_buffer.flatten(0, 2), out.shape[-1]
    scale = row**-0.5 if scale is None else scale
    for b in range(len(queries) - 1):
        mine = slice(*queries[b : b + 2])
        key = descaled(rows[kv_indices[keys[b] : keys[b + 1]].long()], kv_scale)[:, None]
        mask = visible(queries[b + 1] - queries[b], len(key), True, -1, q.device)
        # The kernel looks at the query's scale where the query is FP8.
        query = descaled(q[mine], q_scale if q.dtype is chip().fp8_dtype else None)
        out[mine] = softmax_attention(query, key, key[..., :width], scale, mask).to(out.dtype)


def _need_starts(name, qo_indptr, kv_indptr, kv_last_page_lens):
    """Where each sequence starts, and 1 for its last page of one token.

    sglang's NSA backend passes qo_indptr for the lengths of the last pages. Lengths come from
    kv_indptr where a page has one token: aiter reads those of the last pages for larger ones.
    """
    need_dtype(name, torch.int32, qo_indptr=qo_indptr, kv_indptr=kv_indptr)
    need_dtype(name, torch.int32, kv_last_page_lens=kv_last_page_lens)
    batch = len(qo_indptr) - 1
    need(len(kv_indptr) > batch, f"{name}: kv_indptr of {len(kv_indptr)}, expected {batch + 1}")
    found = kv_last_page_lens[:batch]
    need(
        len(found) == batch and bool((found == 1).all() or torch.equal(found, qo_indptr[:batch])),
        f"{name}: kv_last_page_lens {found.tolist()}, expected 1 for each of {batch}",
    )


def _need_schedule(name, heads, q_dtype, kv_dtype):
    need(heads % 16 == 0, f"{name}: {heads} heads, expected a multiple of 16")
    for each in (q_dtype, kv_dtype):
        allowed = (torch.bfloat16, chip().fp8_dtype)
        need(each in allowed, f"{name}: q or kv of {each}, expected one of {allowed}")


def _metadata_sizes(
    batch_size,
    max_seqlen_qo,
    num_head_qo,
    q_dtype,
    kv_dtype,
    is_sparse,
    fast_mode=True,
    num_kv_splits=32,
    intra_batch_mode=False,
):
    """The kernel's schedule; the reference needs none."""
    name = "get_mla_metadata_info_v1"
    need(not is_sparse, f"{name}: is_sparse")
    need(batch_size > 0 and max_seqlen_qo > 0, f"{name}: {batch_size} times {max_seqlen_qo}")
    _need_schedule(name, num_head_qo, q_dtype, kv_dtype)
    return tuple(((1,), torch.int32) for _ in range(6))


@operator("aiter.get_mla_metadata_v1")
def _fill_metadata(
    seqlens_qo_indptr,
    seqlens_kv_indptr,
    kv_last_page_lens,
    num_heads_per_head_k,
    num_heads_k,
    is_causal,
    work_metadata_ptrs,
    work_info_set,
    work_indptr,
    reduce_indptr,
    reduce_final_map,
    reduce_partial_map,
    page_size=1,
    kv_granularity=16,
    max_seqlen_qo=-1,
    uni_seqlen_qo=-1,
    fast_mode=True,
    max_split_per_batch=-1,
    intra_batch_mode=False,
    dtype_q=None,
    dtype_kv=None,
):
    """One launch, whose tables the reference of the attention does not read."""
    name = "get_mla_metadata_v1"
    _need_starts(name, seqlens_qo_indptr, seqlens_kv_indptr, kv_last_page_lens)
    need(num_heads_k == 1, f"{name}: num_heads_k {num_heads_k}, expected 1")
    need(not is_causal, f"{name}: is_causal")
    need(page_size == 1, f"{name}: page_size {page_size}, expected 1")
    need(
        kv_granularity >= 16 and kv_granularity.bit_count() == 1,
        f"{name}: kv_granularity {kv_granularity}, expected a power of two from 16",
    )
    need(not (fast_mode and intra_batch_mode), f"{name}: fast_mode and intra_batch_mode")
    _need_schedule(name, num_heads_per_head_k, dtype_q, dtype_kv)
    queries = seqlens_qo_indptr.tolist()
    for longest in (max_seqlen_qo, uni_seqlen_qo):
        if longest > 0:  # else unknown
            need_longest(name, queries, max_seqlen_qo=longest)
    for table in (
        work_metadata_ptrs,
        work_info_set,
        work_indptr,
        reduce_indptr,
        reduce_final_map,
        reduce_partial_map,
    ):
        table.zero_()


provided["aiter.get_mla_metadata_info_v1"] = _metadata_sizes
