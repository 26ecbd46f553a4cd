"""aiter's absorbed MLA: one KV head whose first columns are the value."""

import torch

from . import chip, need, operator, provided
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
    need(q.is_contiguous(), f"{name}: a query that is not contiguous")
    fp8 = chip().fp8_dtype
    need(q.dtype in (torch.bfloat16, fp8), f"{name}: query of {q.dtype}")
    need((q.dtype is fp8) or q_scale is None or bool((q_scale == 1).all()), f"{name}: q_scale")
    _mla(q, kv_buffer, o, qo_indptr, kv_indptr, kv_indices, sm_scale, q_scale, kv_scale)
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
    assert logit_cap <= 0, "mla_prefill_fwd: logit_cap is not supported"
    need(num_kv_splits is None, "mla_prefill_fwd: num_kv_splits")
    _mla(q, kv_buffer, output, qo_indptr, kv_indptr, kv_indices, sm_scale, None, None)


def _mla(q, kv_buffer, out, qo_indptr, kv_indptr, kv_indices, scale, q_scale, kv_scale):
    rows, width = kv_buffer.flatten(0, 2), out.shape[-1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries, keys = qo_indptr.tolist(), kv_indptr.tolist()
    for b in range(len(queries) - 1):
        mine = slice(*queries[b : b + 2])
        key = descaled(rows[kv_indices[keys[b] : keys[b + 1]].long()], kv_scale)[:, None]
        mask = visible(queries[b + 1] - queries[b], len(key), True, -1, q.device)
        query = descaled(q[mine], q_scale)
        out[mine] = softmax_attention(query, key, key[..., :width], scale, mask).to(out.dtype)


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
    return tuple(((1,), torch.int32) for _ in range(6))


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
    pass


provided["aiter.get_mla_metadata_info_v1"] = _metadata_sizes
provided["aiter.get_mla_metadata_v1"] = _fill_metadata
