"""An FP8 KV cache, written in one launch and read with the scales that it was written with.

Upstream: https://github.com/sgl-project/sglang/pull/23620 (decode, without scales) and
https://github.com/sgl-project/sglang/pull/26852 (scales, prefill too).

``MHATokenToKVPool.set_kv_buffer`` divides K and V in place, casts both, and stores: five launches,
and the model's live k and v are changed. ``write`` is one launch and leaves them alone; it divides
in fp32 by the fp32 scale and rounds once, where the pristine path rounds the scale and the quotient
to bf16 first; without scales it stores the pristine bytes, except that it saturates where the
pristine cast makes NaN.

What is stored is ``value / scale``, so every reader has to multiply by that scale. The aiter
backend's do not agree among themselves, hence the hooks beside the writes:

=======================================  ====================  ================================
reader (prefill, decode, verify)         pristine descales by  here
=======================================  ====================  ================================
unified_attention, decode                layer's scales        the same
paged_attention_ragged, decode           nothing               ``float_scales``: k in the softmax
                                                               scale, v on the output
mha_batch_prefill_func, K and V          layer's scales        the same
mha_batch_prefill_func, q (never scaled) k_scale               1
extend_attention_fwd, cached prefix      nothing               ``float_scales``
=======================================  ====================  ================================

and hence decode's write gets the layer's scales as prefill's always did. The triton backend writes
and reads with the layer's scales already. MLA is not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.rocm_patches import Slug

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import KVCache
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

SLUG = Slug("fp8-kv-write")
ACTIVE = SLUG.active

if ACTIVE:
    from sglang.srt.rocm_patches.e4m3 import E4M3_MAX, native_e4m3
    from sglang.srt.rocm_patches.fp8_kv_write_kernel import write_kv
    from sglang.srt.rocm_patches.kv_cache import layer_cache

    _FP8_DTYPE = native_e4m3()

_WIDE = (torch.bfloat16, torch.float16, torch.float32)


def write(
    pool: KVCache,
    layer_id: int,
    slots: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_scale: torch.Tensor | float | None,
    v_scale: torch.Tensor | float | None,
) -> bool:
    """Scale, saturate, cast and store k and v; False: nothing was done.

    pool: an MHATokenToKVPool or SWAKVPool, for which slots ``[n]`` are those of the full pool.
    k ``[T, KV heads, head size]`` or ``[T, KV heads * head size]``, v likewise; both may be slices
    of a fused qkv tensor. A pool that is not FP8 is none of this slug's business.
    """
    if pool.dtype not in E4M3_MAX:
        return False
    cache = layer_cache(pool, layer_id)
    if reason := _unfit(pool, cache, k, v):
        SLUG.decline(reason)
        return False
    write_kv(k, v, cache, slots, k_scale, v_scale)
    return True


def _unfit(pool: KVCache, cache, k: torch.Tensor, v: torch.Tensor) -> str | None:
    if cache is None:
        return f"{type(pool).__name__} is neither an MHATokenToKVPool nor an SWAKVPool of two"
    if pool.dtype != _FP8_DTYPE:
        return f"the cache is {pool.dtype}, this GPU's format is {_FP8_DTYPE}"
    if k.dtype not in _WIDE or k.dtype != v.dtype:
        return f"k is {k.dtype}, v is {v.dtype}"
    for name, x, rows in (("k", k, cache.k), ("v", v, cache.v)):
        if x.numel() != x.shape[0] * rows[0].numel():
            return f"{name} is {list(x.shape)}, the cache's rows are {list(rows.shape[1:])}"
    return None


def save(
    forward_batch: ForwardBatch,
    layer: RadixAttention,
    slots: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> None:
    """Store a layer's k and v, as ``write`` takes them, in an FP8 pool of any type, scaled."""
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    pool, scales = forward_batch.token_to_kv_pool, (layer.k_scale, layer.v_scale)
    # An SWAKVPool translates slots in two launches of its own; all other pools end in ``write``.
    if not (type(pool) is SWAKVPool and write(pool, layer.layer_id, slots, k, v, *scales)):
        pool.set_kv_buffer(layer, slots, k, v, *scales)


def float_scales(layer: RadixAttention, k_descale: torch.Tensor | None) -> tuple[float, float]:
    """k's and v's scale for a reader that takes no tensors; 1 in the pristine path.

    k_descale: what the backend has for readers that do, None where the cache is not FP8.
    """
    if not ACTIVE or k_descale is None:
        return 1.0, 1.0
    return _as_float(layer.k_scale, layer.k_scale_float), _as_float(
        layer.v_scale, layer.v_scale_float
    )


def _as_float(scale: torch.Tensor | float | None, loaded: float | None) -> float:
    if scale is None:
        return 1.0
    # --quantization-param-path puts a float where a checkpoint puts a tensor and its float.
    return loaded if isinstance(scale, torch.Tensor) else scale
