"""Where a token's K and V lie in an attention pool, and in what form.

One definition of the cached bytes for every kernel that writes them: a 16-bit cache holds the value
itself; an e4m3 cache holds ``value / scale``, the IEEE quotient in fp32, saturated, then rounded
once to nearest even. A reader multiplies by the same scale.

A slot is a row of the pool's buffers, whatever its page size: pages are contiguous, so
``page * page_size + offset`` is the row. Negative slots are not written.

Whether the scales of a layer are used at all is one decision for a whole server, since all of its
attention backends read the same bytes: ``aiter_uses_scales``.
"""

import functools
import inspect
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


@functools.cache
def triton_uses_scales() -> bool:
    """Whether this release's triton backend stores and reads with scales; 0.5.9's does neither."""
    from sglang.srt.layers.attention.triton_ops.decode_attention import decode_attention_fwd

    return "k_scale" in inspect.signature(decode_attention_fwd).parameters


def aiter_uses_scales() -> bool:
    """Whether aiter's backend stores and reads with the layers' scales, under fp8-kv-write.

    The other backends of a server are upstream's and stay as they are, so aiter's follows them:
    triton's uses scales from 0.5.10 on, and no other backend of HIP uses any. Of bytes that come
    from another server, or go to one, we assume that its backend is aiter's or triton's.
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
    """int64 slots of the tokens ``t``: -1 for those at or past ``n``."""
    slot = tl.load(slots + t * stride, mask=t < n, other=-1).to(tl.int64)
    if full_to_swa is not None:
        slot = tl.load(full_to_swa + slot, mask=slot >= 0, other=-1).to(tl.int64)
    return slot


@triton.jit
def load_scale(scale):
    """A scale that is given: the number, or the one that a pointer points to.

    A kernel loads its scales before its first store: the compiler moves no load across one.
    """
    return tl.load(scale) if scale.dtype.is_ptr() else scale


@triton.jit
def _quotient(x, scale):
    """x / scale, which e4m3 rounds as it does the IEEE quotient; x: numbers of a 16-bit type.

    An exact fp32 division takes a dozen instructions an element, and a product with the inverse is
    wrong by more than its rounding, enough to cross a tie of e4m3. With the inverse in two parts,
    ``high`` a little below it and ``low`` the rest, what is rounded is the quotient to 2^-39 of
    itself. Beside a tie, where fp32 rounds either to it or to its neighbour, no quotient of an x of
    at most 11 bits is nearer than 2^-38: but a power of two over the number before one, which is
    2^-48 above such a place at the least tie. So ``low`` is rounded up. It has the sign of
    ``high``, and zeros keep theirs.
    """
    inverse = 1.0 / scale  # 3 ulp are near enough
    high = inverse * (1.0 - 2.0**-21)
    low = tl.fma(-high, scale, 1.0) * inverse * (1.0 + 2.0**-20)
    return tl.fma(x, high, x * low)


@triton.jit
def cached(x, scale, MAX: tl.constexpr):
    """The fp32 number that is stored for ``x``; MAX is e4m3's largest, 0 for a 16-bit cache.

    scale: a number, from 2^-100 to 2^100, or None.
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
