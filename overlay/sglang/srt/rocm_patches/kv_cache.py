"""Where a token's K and V lie in an attention pool, and in what form.

One definition of the cached bytes for every kernel that writes them: a 16-bit cache holds the value
itself; an e4m3 cache holds ``value / scale``, the IEEE quotient in fp32, saturated, then rounded
once to nearest even. A reader multiplies by the same scale.

A slot is a row of the pool's buffers, whatever its page size: pages are contiguous, so
``page * page_size + offset`` is the row. Negative slots are not written.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches.e4m3 import saturate_e4m3

if TYPE_CHECKING:
    from sglang.srt.mem_cache.memory_pool import KVCache


class LayerCache(NamedTuple):
    """One layer's share of a pool."""

    k: torch.Tensor  # [slots, KV heads, head size]
    v: torch.Tensor  # [slots, KV heads, V head size]
    full_to_swa: torch.Tensor | None  # integer [full slots + ..]: the sliding-window slot of a slot


def layer_cache(pool: "KVCache", layer_id: int) -> LayerCache | None:
    """The buffers of a layer in an MHATokenToKVPool or an SWAKVPool made of two; None in others.

    Only an SWAKVPool has a slot mapping (https://github.com/sgl-project/sglang/pull/31688), and its
    layer says by itself whether it needs one.
    """
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    full_to_swa = None
    if type(pool) is SWAKVPool:
        layer_id, is_swa = pool.layers_mapping[layer_id]
        if is_swa and pool.full_to_swa_index_mapping is not None:
            # The pool holds a weakref.proxy; a view of it is a tensor, as the launcher wants.
            full_to_swa = pool.full_to_swa_index_mapping.view(-1)
        pool = pool.swa_kv_pool if is_swa else pool.full_kv_pool
    if type(pool) is not MHATokenToKVPool:
        return None
    row = layer_id - pool.start_layer
    # Not get_kv_buffer: it waits until the layer's old tokens are there, and these are new ones.
    return LayerCache(
        pool.k_buffer[row].view(pool.dtype), pool.v_buffer[row].view(pool.dtype), full_to_swa
    )


def kernel_scale(scale: torch.Tensor | float | None) -> torch.Tensor | float | None:
    """A scale as the kernels take it: a one-element fp32 tensor, a float, or None for 1."""
    if scale is None or isinstance(scale, torch.Tensor):
        return scale
    return None if scale == 1.0 else float(scale)


@triton.jit
def load_slots(slots, stride, full_to_swa, t, n):
    """int64 slots of the tokens ``t``: -1 for those at or past ``n``."""
    slot = tl.load(slots + t * stride, mask=t < n, other=-1).to(tl.int64)
    if full_to_swa is not None:
        slot = tl.load(full_to_swa + slot, mask=slot >= 0, other=-1).to(tl.int64)
    return slot


@triton.jit
def _quotient(x, scale):
    """x / scale as IEEE rounds it, or what saturates as it does; scale and its inverse are normal.

    A plain fp32 division is approximate on a GPU, and an exact one takes a dozen instructions an
    element. Here one exact division gives the inverse, and two corrections of the product, each by
    its remainder, which fma has exactly, the nearest quotient (Markstein's theorem).
    """
    inverse = tl.div_rn(1.0, scale)
    product = x * inverse
    near = tl.fma(tl.fma(-product, scale, x), inverse, product)
    nearest = tl.fma(tl.fma(-near, scale, x), inverse, near)
    # A remainder would make NaN of an infinite product, and take the sign from a zero.
    ordinary = (tl.abs(product) < 65536.0) & (product != 0.0)
    return tl.where(ordinary, nearest, product)


@triton.jit
def cached(x, scale, MAX: tl.constexpr):
    """The fp32 number that is stored for ``x``; MAX is e4m3's largest, 0 for a 16-bit cache.

    scale: a number or None. A kernel loads one that is in memory itself, before its first store:
    the compiler moves no load across one.
    """
    if MAX > 0:
        if scale is not None:
            x = _quotient(x, scale)
        x = saturate_e4m3(x, MAX)
    return x


@triton.jit
def store_columns(cache_rows, x, live, column, scale, MAX: tl.constexpr):
    """Store ``x`` ``[ROWS, BLOCK]`` at columns ``[1, BLOCK]`` of the cache's rows ``[ROWS, 1]``."""
    y = cached(x.to(tl.float32), scale, MAX)
    tl.store(cache_rows + column, y.to(cache_rows.dtype.element_ty), mask=live)
