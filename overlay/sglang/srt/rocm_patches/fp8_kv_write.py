"""FP8 KV cache: write K and V in one launch, and read them with the scales of the write.

Upstream: https://github.com/sgl-project/sglang/pull/23620 (decode, without scales) and
https://github.com/sgl-project/sglang/pull/26852 (scales, prefill too).

``MHATokenToKVPool.set_kv_buffer`` divides K and V in place, casts both, and stores both. That takes
five launches and changes k and v, which the model still uses. ``write`` takes one launch and does
not change k and v. It divides in fp32 by the fp32 scale and rounds once; the pristine path first
rounds the scale and the quotient to bf16. Without scales, ``write`` stores the pristine bytes,
except that it saturates an overflow that the pristine cast turns into NaN.

The cache holds ``value / scale``, so every reader must multiply by that scale. One server has one
convention (``kv_cache.aiter_uses_scales``): aiter's backend uses the layers' scales for writes and
reads if all other backends of the server use them, and no scales if one other backend does not.
Upstream's readers in the aiter backend do not agree with each other, so readers have hooks too:

=======================================  ====================  ================================
reader (prefill, decode, verify)         pristine descales by  here, by ``scales(layer)``
=======================================  ====================  ================================
0.5.10, unified_attention, decode        layer's scales        ``descales``
0.5.10, paged_attention_ragged, decode   nothing               ``ragged``: the operator itself
0.5.10, mha_batch_prefill_func, K and V  layer's scales        ``descales``
0.5.10, mha_batch_prefill_func, q        k_scale               1 (q was cast unscaled), and
                                                               ``saturated`` before the cast
0.5.10, extend_attention_fwd, prefix     nothing               ``float_scales``
0.5.9, paged_attention_ragged, decode    nothing               ``ragged``
0.5.9, mha_batch_prefill_func, K and V   nothing               ``widened``, as it converts
=======================================  ====================  ================================

A scale is a tensor if it comes from a checkpoint, and a float if --quantization-param-path sets it.
All of these readers take both. ``settle_scales`` converts the floats to tensors when a model is
loaded, because 0.5.10's triton backend takes only tensors. docs/numerics.md lists every other
writer and reader of these caches. MLA is not changed.

**Bytes.** In the pristine path, decode by ``paged_attention_ragged``, and prefill in 0.5.9, convert
the whole pool to bf16 in every layer, including unused slots. Let the pool have P slots, u of them
in use, with w bytes per slot in FP8 (w = 2 * KV heads * head size). One layer of a step moves

=========  =================================================  ===========================
phase      pristine                                           here
=========  =================================================  ===========================
decode     P * (w + 2w) to convert, u * 2w to attend          u * w
prefill    the same                                           u * (w + 2w), then u * 2w
=========  =================================================  ===========================

MiniMax-M2.5 at TP 4 on MI300X: w = 512 and P = (0.85 * 192 GiB - 58 GB of weights) / (62 layers *
w) = 3.7 million. With 64 requests of 9000 tokens (u = 576 000) a decode step moves 6.2 GB a layer,
390 GB in all, against 0.29 GB a layer, 18 GB in all; with 4 such requests 350 GB against 1.1 GB.

**Decode** passes the FP8 cache to ``paged_attention_ragged`` without conversion. The images carry
aiter v0.1.10.post3 and v0.1.11.post1. The operator has the same sources in both: it reads e4m3 and
takes one scale for K and one for V. https://github.com/ROCm/aiter/pull/3609 tests these sources on
gfx942 with page size 1, and upstream uses the operator this way from 0.5.12 on
(https://github.com/sgl-project/sglang/pull/24129). The operator multiplies in FP8: it also rounds q
and the softmax weights of each 256 keys to e4m3. So the relative error of an output row, against
attention in fp64 over the same cache, is up to 0.2; the pristine path's is 0.002.
SGLANG_ROCM_PATCH_FP8_KV_WRITE_DECODE=exact keeps q and the weights in bf16 and dequantizes only the
slots in use, as prefill does in 0.5.9. The operator casts q without a clamp, so we clamp q first.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

import torch
from sglang.srt.rocm_patches import DECODE, Slug, releases

if TYPE_CHECKING:
    from sglang.srt.layers.attention.aiter_backend import AiterAttnBackend
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import KVCache
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

logger = logging.getLogger(__name__)

SLUG = Slug("fp8-kv-write")
ACTIVE = SLUG.active


def _exact_decode() -> bool:
    value = os.environ.get(DECODE, "fast")
    if value not in ("fast", "exact"):
        logger.warning("%s=%r counts as exact: write fast or exact", DECODE, value)
    return value != "fast"


if ACTIVE:
    from sglang.srt.rocm_patches.e4m3 import E4M3_MAX, native_e4m3
    from sglang.srt.rocm_patches.fp8_kv_write_kernel import write_kv
    from sglang.srt.rocm_patches.fp8_kv_write_widen_kernel import widen
    from sglang.srt.rocm_patches.kv_cache import aiter_uses_scales, layer_cache, unfit_pool

    _FP8_DTYPE = native_e4m3()
    # aiter's other decode kernel (another QKV_VERSION) takes only bf16 rows.
    _DECODES_IN_FP8 = os.environ.get("QKV_VERSION", "GOLDEN") == "GOLDEN" and not _exact_decode()

_WIDE = (torch.bfloat16, torch.float16, torch.float32)
# Head sizes for which paged_attention_ragged covers all columns of a 16-bit cache.
_HEADS_IN_16_BITS = (64, 128, 192, 256)

Scale = torch.Tensor | float | None


def write(
    pool: KVCache,
    layer_id: int,
    slots: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_scale: Scale,
    v_scale: Scale,
) -> bool:
    """Scale, saturate, cast and store k and v; False if nothing was done.

    pool: an MHATokenToKVPool, or an SWAKVPool, whose slots ``[n]`` are slots of the full pool.
    k ``[T, KV heads, head size]`` or ``[T, KV heads * head size]``, v likewise; both may be slices
    of a fused qkv tensor. A pool that is not FP8 gives False without a log line.
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
        return unfit_pool(pool)
    if pool.dtype != _FP8_DTYPE:
        return f"the cache is {pool.dtype}, this GPU's format is {_FP8_DTYPE}"
    if k.dtype not in _WIDE or k.dtype != v.dtype:
        return f"k is {k.dtype}, v is {v.dtype}"
    for name, x, rows in (("k", k, cache.k), ("v", v, cache.v)):
        if x.numel() != x.shape[0] * rows[0].numel():
            rows = list(rows.shape[1:])
            return f"{name} is {list(x.shape[1:])} a token, the cache's rows are {rows}"
    return None


def save(
    forward_batch: ForwardBatch,
    layer: RadixAttention,
    slots: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> None:
    """Scale a layer's k and v (shaped as for ``write``) and store them in any type of FP8 pool."""
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    pool, by = releases.kv_pool(forward_batch), scales(layer)
    # SWAKVPool.set_kv_buffer translates slots in two launches of its own; so call ``write`` first.
    # set_kv_buffer of every other pool ends in ``write``.
    if not (type(pool) is SWAKVPool and write(pool, layer.layer_id, slots, k, v, *by)):
        pool.set_kv_buffer(layer, releases.write_location(pool, slots), k, v, *by)


def scales(layer: RadixAttention) -> tuple[Scale, Scale]:
    """The scales with which aiter's backend stores and reads a layer's K and V; None means 1."""
    if not aiter_uses_scales():
        return None, None
    return layer.k_scale, layer.v_scale


def descales(backend: AiterAttnBackend, layer: RadixAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """``scales`` as tensors, for a reader that needs them; the backend's own 1 replaces None."""
    k_scale, v_scale = scales(layer)
    return _as_tensor(k_scale, backend.k_scale), _as_tensor(v_scale, backend.v_scale)


def settle_scales(model: torch.nn.Module) -> None:
    """Convert float scales of --quantization-param-path to the tensors that a checkpoint gives."""
    from sglang.srt.layers.radix_attention import RadixAttention

    device = next(model.parameters()).device
    for layer in model.modules():
        if isinstance(layer, RadixAttention):
            for name in ("k_scale", "v_scale"):
                scale = getattr(layer, name)
                if isinstance(scale, float):
                    setattr(layer, name, torch.tensor(scale, dtype=torch.float32, device=device))
                    setattr(layer, f"{name}_float", scale)


def fused_store_lacks_scales(layer: RadixAttention, forward_batch: ForwardBatch) -> bool:
    """Whether Qwen3's fused norm, M-RoPE and store, which uses scale 1, would store wrong bytes."""
    if releases.kv_pool(forward_batch).dtype not in E4M3_MAX:
        return False
    loaded = layer.k_scale_float, layer.v_scale_float
    return any(_as_float(*each) != 1.0 for each in zip(scales(layer), loaded, strict=True))


def float_scales(layer: RadixAttention, k_descale: torch.Tensor | None) -> tuple[float, float]:
    """The scales of k and v for a reader that takes floats; 1 in the pristine path.

    k_descale: the backend's scale for readers that take tensors; None if the cache is not FP8.
    """
    if not ACTIVE or k_descale is None:
        return 1.0, 1.0
    k_scale, v_scale = scales(layer)
    return _as_float(k_scale, layer.k_scale_float), _as_float(v_scale, layer.v_scale_float)


def _as_float(scale: Scale, loaded: float | None) -> float:
    if scale is None:
        return 1.0
    # --quantization-param-path sets only a float; a checkpoint sets a tensor and a float.
    return loaded if isinstance(scale, torch.Tensor) else scale


def saturated(q: torch.Tensor) -> torch.Tensor:
    """q clamped to this GPU's e4m3 range, for a cast without a clamp; q in the pristine path."""
    if not ACTIVE:
        return q
    largest = E4M3_MAX[_FP8_DTYPE]
    return q.clamp(-largest, largest)


class Ragged(NamedTuple):
    """The operands of ``paged_attention_ragged``."""

    q: torch.Tensor  # [T, heads * head size]
    k_cache: torch.Tensor  # [slots, KV heads, head size]
    v_cache: torch.Tensor
    cache_format: str
    k_scale: torch.Tensor  # fp32, one element; used only for an FP8 cache
    v_scale: torch.Tensor


def ragged(
    backend: AiterAttnBackend,
    layer: RadixAttention,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
) -> Ragged:
    """Decode's operands for an FP8 cache: the cache itself, or a dequantized copy if necessary."""
    head, one = layer.qk_head_dim, (backend.k_scale, backend.v_scale)
    # The operator reads FP8 rows in steps of 64 of every 128 elements.
    if _DECODES_IN_FP8 and (head == 64 or head % 128 == 0):
        return Ragged(saturated(q), k_cache, v_cache, "fp8", *descales(backend, layer))
    if head not in _HEADS_IN_16_BITS:
        SLUG.decline(f"paged_attention_ragged leaves out columns of heads of {head}")
        return Ragged(q, k_cache.to(q.dtype), v_cache.to(q.dtype), "auto", *one)
    metadata = backend.forward_metadata
    read = metadata.kv_indptr[: q.shape[0] + 1], metadata.kv_indices
    wide = widened(layer, k_cache, v_cache, *read, q.dtype)
    return Ragged(q, *wide, "auto", *one)


def _as_tensor(scale: Scale, one: torch.Tensor) -> torch.Tensor:
    if scale is None:
        return one
    # aiter reads fp32 from the scale's address and ignores its dtype.
    return scale.float() if isinstance(scale, torch.Tensor) else _constant(scale, one.device)


@functools.cache  # created once, before graph capture
def _constant(scale: float, device: torch.device) -> torch.Tensor:
    return torch.tensor([scale], dtype=torch.float32, device=device)


def widened(
    layer: RadixAttention,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both caches, dequantized to ``dtype`` with the layer's scales, for the slots of the batch.

    kv_indptr: int32 ``[B + 1]``; kv_indices: int32; only its first ``kv_indptr[B]`` are used.
    """
    return widen(k_cache, v_cache, kv_indices, kv_indptr[-1:], *scales(layer), dtype)
