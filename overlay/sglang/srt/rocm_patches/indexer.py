"""The sparse-attention indexer: project head gates in bf16; quantize and store K in one launch.

Upstream: https://github.com/sgl-project/sglang/pull/22850. This module differs in two points.

**Scale constant.** The pristine path scales a key's amax to 224 on e4m3fnuz (gfx942) and to 448 on
e4m3fn (gfx950). Upstream calls aiter's ``indexer_k_quant_and_cache`` on both, which scales to 240
and 448. A reader multiplies by the stored scale, so it can read both. But other processes on the
pristine path share the pages (disaggregation, host cache), and the two paths should differ in speed
only. So this module writes the pristine bits. gfx942 uses our own kernel. gfx950 uses aiter's
kernel, which agrees for every bf16 amax: it divides, takes log2, rounds up, exponentiates; that is
exact if the device's log2 is exact at powers of two. gfx950 uses ours if aiter lacks the kernel.

**Head gates.** The projection runs in bf16 with fp32 accumulation. Our kernel does not round its
result. The scales are then multiplied in fp32, in the pristine order; upstream multiplies by
n_heads**-0.5 in bf16. Our kernel chooses its number of partial sums by the number of tokens, so
deterministic inference uses the pristine projection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.rocm_patches import Slug, arch

if TYPE_CHECKING:
    from sglang.srt.layers.attention.nsa.nsa_indexer import Indexer
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

SLUG = Slug("indexer")
ACTIVE = SLUG.active

if ACTIVE:
    from sglang.srt.rocm_patches.aiter_ops import aiter_op
    from sglang.srt.rocm_patches.determinism import by_batch
    from sglang.srt.rocm_patches.e4m3 import native_e4m3
    from sglang.srt.rocm_patches.indexer_gate_kernel import project_head_gates, why_not
    from sglang.srt.rocm_patches.indexer_kernel import (
        HEAD_DIM,
        PAGE_BYTES_PER_SLOT,
        scale_head_gates,
    )
    from sglang.srt.rocm_patches.indexer_kernel import store_index_k as _triton_store

    _FP8_DTYPE = native_e4m3()
    _aiter_store = (
        aiter_op("aiter.ops.cache", "indexer_k_quant_and_cache") if arch() == "gfx950" else None
    )


def head_gate(indexer: Indexer, x: torch.Tensor, q_scale: torch.Tensor) -> torch.Tensor:
    """``Indexer._get_logits_head_gate`` in at most two launches.

    x ``[T, hidden size]``, bf16; q_scale ``[T, n_heads, 1]``, fp32.
    Returns ``[T, n_heads, 1]``, fp32.
    """
    weight, scales = indexer.weights_proj.weight, (indexer.n_heads**-0.5, indexer.softmax_scale)
    if reason := by_batch() or why_not(x, weight):
        SLUG.decline(f"head gates: {reason}")
        weights, _ = indexer.weights_proj(x.to(weight.dtype))  # as the pristine path
        return scale_head_gates(weights, q_scale, *scales)
    return project_head_gates(x, weight, q_scale, *scales)


def store_index_k(
    indexer: Indexer, forward_batch: ForwardBatch, layer_id: int, key: torch.Tensor
) -> bool:
    """Quantize key ``[T, 128]`` and store it at ``out_cache_loc``; False if nothing was done."""
    if (
        key.dtype != torch.bfloat16
        or key.shape[1:] != (HEAD_DIM,)
        or indexer.block_size != HEAD_DIM
        or indexer.scale_fmt != "ue8m0"
    ):
        SLUG.decline(
            f"index K {key.dtype} {list(key.shape[1:])}, block {indexer.block_size}, "
            f"scales {indexer.scale_fmt}: not bf16 [{HEAD_DIM}], {HEAD_DIM}, ue8m0"
        )
        return False
    pool = forward_batch.token_to_kv_pool
    cache = pool.get_index_k_with_scale_buffer(layer_id=layer_id)
    slots = forward_batch.out_cache_loc
    # aiter reads raw pointers: it needs contiguous rows, int64 slots, and one slot per key.
    num_tokens = min(key.shape[0], slots.shape[0])
    if (
        _aiter_store is not None
        and num_tokens > 0
        and key.is_contiguous()
        and slots.dtype == torch.int64
        and slots.is_contiguous()
    ):
        pages = cache.view(cache.shape[0], pool.page_size, PAGE_BYTES_PER_SLOT).view(_FP8_DTYPE)
        _aiter_store(key[:num_tokens], pages, slots[:num_tokens], HEAD_DIM, indexer.scale_fmt)
    else:
        _triton_store(key, cache, slots, pool.page_size, _FP8_DTYPE)
    return True
