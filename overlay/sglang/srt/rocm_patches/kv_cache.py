"""Where an attention pool holds a token's K and V, and in which format.

This module defines the cached bytes for every kernel that writes them. A 16-bit cache holds the
value itself. An e4m3 cache holds ``value / scale``: the IEEE quotient in fp32, saturated, then
rounded once to nearest even. A reader multiplies by the same scale.

A slot is a row of the pool's buffers for every page size: pages are contiguous, so the row is
``page * page_size + offset``. Negative slots are not written.

All attention backends of a server read the same bytes. So ``aiter_uses_scales`` decides once for
the whole server whether the scales of the layers are used.
"""

import functools
import inspect
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches import releases
from sglang.srt.rocm_patches.e4m3 import saturate_e4m3

if TYPE_CHECKING:
    from sglang.srt.mem_cache.memory_pool import KVCache


class LayerCache(NamedTuple):
    """The buffers of one layer in a pool."""

    k: torch.Tensor  # [slots, KV heads, head size]
    v: torch.Tensor  # [slots, KV heads, V head size]
    full_to_swa: torch.Tensor | None  # integer [full slots + ..]: the sliding-window slot of a slot


def unfit_pool(pool: "KVCache") -> str | None:
    """Why no layer of this pool is a `LayerCache`."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    pools = [pool.full_kv_pool, pool.swa_kv_pool] if type(pool) is SWAKVPool else [pool]
    if any(type(each) is not MHATokenToKVPool for each in pools):
        return f"{type(pool).__name__} is neither an MHATokenToKVPool nor an SWAKVPool of two"
    if any(releases.layout(each) != "nhd" for each in pools):
        return f"the cache's layout is {releases.layout(pools[0])}"
    return None


def layer_cache(pool: "KVCache", layer_id: int) -> LayerCache | None:
    """One layer's buffers in an MHATokenToKVPool, or an SWAKVPool of two; None for other pools.

    Only an SWAKVPool has a slot mapping (https://github.com/sgl-project/sglang/pull/31688). The
    pool's ``layers_mapping`` says whether a layer needs it.
    """
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    if unfit_pool(pool):
        return None
    full_to_swa = None
    if type(pool) is SWAKVPool:
        layer_id, is_swa = pool.layers_mapping[layer_id]
        if is_swa and pool.full_to_swa_index_mapping is not None:
            # The pool holds a weakref.proxy; Triton needs a tensor, which view() returns.
            full_to_swa = pool.full_to_swa_index_mapping.view(-1)
        pool = pool.swa_kv_pool if is_swa else pool.full_kv_pool
    row = layer_id - pool.start_layer
    # Do not call get_kv_buffer(): it blocks until HiCache has loaded the layer's *old* tokens.
    # We only write new ones.
    return LayerCache(
        pool.k_buffer[row].view(pool.dtype), pool.v_buffer[row].view(pool.dtype), full_to_swa
    )


@functools.cache
def triton_uses_scales() -> bool:
    """Whether this release's triton backend stores and reads with scales; 0.5.9's does not."""
    return "k_scale" in inspect.signature(releases.triton_decode()).parameters


def aiter_uses_scales() -> bool:
    """Whether aiter's backend stores and reads with the layers' scales, under fp8-kv-write.

    We do not change the other backends of a server, so aiter's backend follows them: triton's
    backend uses scales from 0.5.10 on, and no other HIP backend uses scales. If the server
    exchanges cached bytes with another server, we assume that the other server's backend is
    aiter's or triton's.
    """
    from sglang.srt.server_args import get_global_server_args

    server = get_global_server_args()
    names = {*server.get_attention_backends(), server.speculative_draft_attention_backend}
    if (
        server.disaggregation_mode != "null"
        or server.hicache_storage_backend
        or server.enable_lmcache
    ):
        names.add("triton")
    return names - {None} <= ({"aiter", "triton"} if triton_uses_scales() else {"aiter"})


def kernel_scale(scale: torch.Tensor | float | None) -> torch.Tensor | float | None:
    """A scale as the kernels take it: a one-element fp32 tensor, a float, or None for 1."""
    if scale is None or isinstance(scale, torch.Tensor):
        return scale
    return None if scale == 1.0 else float(scale)


@triton.jit
def load_slots(slots, stride, full_to_swa, t, n):
    """The int64 slots of the tokens ``t``; -1 for tokens at or past ``n``."""
    slot = tl.load(slots + t * stride, mask=t < n, other=-1).to(tl.int64)
    if full_to_swa is not None:
        slot = tl.load(full_to_swa + slot, mask=slot >= 0, other=-1).to(tl.int64)
    return slot


@triton.jit
def load_scale(scale):
    """The value of ``scale``, which is a number or a pointer to one, and not None.

    A kernel loads its scales before its first store: the compiler moves no load across a store.
    """
    return tl.load(scale) if scale.dtype.is_ptr() else scale


@triton.jit
def _quotient(x, scale):
    """x / scale for 16-bit x, exact enough that rounding to e4m3 gives the IEEE quotient's bits.

    An exact fp32 division takes a dozen instructions per element. A product with the fp32 inverse
    can land on the wrong side of an e4m3 tie. So split the inverse into ``high``, slightly too
    small, and ``low``, the remainder biased upwards. docs/numerics.md has the proof.
    """
    inverse = 1.0 / scale  # an error of 3 ulp is small enough
    high = inverse * (1.0 - 2.0**-21)
    low = tl.fma(-high, scale, 1.0) * inverse * (1.0 + 2.0**-20)
    return tl.fma(x, high, x * low)


@triton.jit
def cached(x, scale, MAX: tl.constexpr):
    """The fp32 value to store for ``x``. MAX: the largest value of e4m3, or 0 for a 16-bit cache.

    scale: a number from 2^-100 to 2^100, or None.
    """
    y = x.to(tl.float32)
    if MAX > 0:
        if scale is not None:
            y = tl.div_rn(y, scale) if x.dtype == tl.float32 else _quotient(y, scale)
        y = saturate_e4m3(y, MAX)
    return y


@triton.jit
def store_columns(cache_rows, x, live, column, scale, MAX: tl.constexpr):
    """Store ``x`` ``[ROWS, BLOCK]`` at columns ``[1, BLOCK]`` of the cache's rows ``[ROWS, 1]``."""
    y = cached(x, scale, MAX)
    tl.store(cache_rows + column, y.to(cache_rows.dtype.element_ty), mask=live)
