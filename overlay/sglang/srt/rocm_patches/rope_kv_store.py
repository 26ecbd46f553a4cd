"""Rotary embedding and the KV store in one launch.

Upstream: https://github.com/sgl-project/sglang/pull/21315. Its kernel runs one program per query
head, and its condition is "any HIP GPU". Follow-ups:
https://github.com/sgl-project/sglang/pull/31688 (crash on a plain pool) and
https://github.com/sgl-project/sglang/pull/37315 (one program for each KV group).

A model calls ``enable_fused_set_kv_buffer`` twice per layer. Before the rotary embedding, the
answer decides whether the embedding receives a ``KVStore``. Before attention, it decides on
``save_kv_cache=False``. ``enabled`` uses only the batch, so both calls get the same answer. A
rotary embedding that receives a ``KVStore`` rotates *and* stores: in one launch if the kernel
supports the call, otherwise in the pristine steps. So no layer rotates twice, and no layer skips
the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from sglang.srt.rocm_patches import Slug, active, releases

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.layers.rotary_embedding import RotaryEmbedding
    from sglang.srt.mem_cache.memory_pool import KVCache
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

SLUG = Slug("rope-kv-store")
ACTIVE = SLUG.active

if ACTIVE:
    from sglang.srt.rocm_patches.e4m3 import E4M3_MAX, native_e4m3
    from sglang.srt.rocm_patches.kv_cache import (
        LayerCache,
        aiter_uses_scales,
        layer_cache,
        triton_uses_scales,
        unfit_pool,
    )
    from sglang.srt.rocm_patches.rope_kv_store_kernel import rotate_and_store as _launch

    _CACHE_DTYPES = (torch.bfloat16, torch.float16, native_e4m3())


class KVStore(NamedTuple):
    """What the rotary embedding has to store while it rotates."""

    value: torch.Tensor  # [T, KV heads * V head size] or [T, KV heads, V head size]
    layer: RadixAttention
    pool: KVCache
    slots: torch.Tensor  # integer [n], of the full pool
    k_scale: torch.Tensor | float | None  # attention multiplies FP8 K by it
    v_scale: torch.Tensor | float | None

    @classmethod
    def of(
        cls,
        value: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        descaled: bool,
    ) -> KVStore:
        """descaled: attention multiplies the K and V that it reads by the layer's scales."""
        scales = (layer.k_scale, layer.v_scale) if descaled else (None, None)
        pool = releases.kv_pool(forward_batch)
        return cls(value, layer, pool, forward_batch.out_cache_loc, *scales)


def enabled(forward_batch: ForwardBatch, context_parallel: bool = False) -> bool:
    """Whether the rotary embedding, not attention, stores this batch's K and V.

    context_parallel: prefill context parallelism is on; it gathers K between the two.
    """
    reason = _unfit_batch(forward_batch, context_parallel)
    if reason:
        SLUG.decline(reason)
    return reason is None


def reader_descales(forward_batch: ForwardBatch) -> bool:
    """Whether attention multiplies the K and V of this batch by the layers' scales.

    fp8-kv-write makes aiter's backend follow the server's other backends. Without fp8-kv-write,
    0.5.9 has no reader that descales, and 0.5.10's aiter backend descales except in decode by
    ``paged_attention_ragged``. Triton's backend descales from 0.5.10 on, and no other one does.
    """
    backend = _backend_of(forward_batch)
    if not _is(backend, "AiterAttnBackend"):
        return _is(backend, "TritonAttnBackend") and triton_uses_scales()
    if active("fp8-kv-write"):
        return aiter_uses_scales()
    if not triton_uses_scales():
        return False
    return backend.use_triton_unified_attention or not forward_batch.forward_mode.is_decode()


def _backend_of(forward_batch: ForwardBatch) -> object:
    """The attention backend that runs this batch's layers."""
    backend = releases.attention_backend(forward_batch)
    while True:
        if hasattr(backend, "primary"):  # two-batch overlap
            backend = backend.primary
        elif hasattr(backend, "_select_backend"):  # different backends for prefill and decode
            backend = backend._select_backend(forward_batch.forward_mode)
        else:
            return backend


def _is(backend: object, name: str) -> bool:
    return type(backend).__name__ == name  # importing AiterAttnBackend would import aiter


def _unfit_batch(forward_batch: ForwardBatch, context_parallel: bool) -> str | None:
    from sglang.srt.server_args import get_global_server_args

    pool = releases.kv_pool(forward_batch)
    if reason := unfit_pool(pool):
        return reason
    if pool.dtype not in _CACHE_DTYPES:
        return f"the cache is {pool.dtype}"
    if context_parallel:
        return "prefill context parallelism"
    if releases.decode_context_parallel(forward_batch):
        return "decode context parallelism"
    if forward_batch.encoder_lens is not None:
        return "an encoder's tokens have slots of their own"
    if get_global_server_args().rl_on_policy_target is not None:
        return "rl_on_policy_target asks for the native rotary embedding"
    return None


def rotate_and_store(
    rope: RotaryEmbedding,
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None,
    store: KVStore,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate query and key in place, store key and ``store.value``; return query and key.

    query ``[T, heads * head size]`` or ``[T, heads, head size]``, key likewise.
    """
    layer = store.layer
    cache = layer_cache(store.pool, layer.layer_id)
    if reason := _unfit(rope, cache, positions, query, key, offsets, store):
        SLUG.decline(reason)
        return _in_steps(rope.forward_cuda, positions, query, key, offsets, store)
    _launch(
        query.view(query.shape[0], layer.tp_q_head_num, rope.head_size),
        key.view(key.shape[0], *cache.k.shape[1:]),
        store.value.view(key.shape[0], *cache.v.shape[1:]),
        positions,
        rope.cos_sin_cache,
        rope.is_neox_style,
        cache,
        store.slots,
        store.k_scale,
        store.v_scale,
    )
    return query, key


def rotate_then_store(
    rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None,
    store: KVStore,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``rotate_and_store`` for a rotary embedding that runs natively."""
    _say_native()
    return _in_steps(rotate, positions, query, key, offsets, store)


@torch.compiler.assume_constant_result  # runs at trace time: logging in the graph would break it
def _say_native() -> bool:
    SLUG.decline("the rotary embedding runs natively, as torch.compile has it")
    return True


def _in_steps(
    rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None,
    store: KVStore,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate, then store, in the pristine steps: for calls that the kernel does not support."""
    query, key = rotate(positions, query, key, offsets)
    layer = store.layer
    # A pristine pool divides its arguments by the scales in place; the model still uses key, value.
    k, v = (x if store.k_scale is None else x.clone() for x in (key, store.value))
    store.pool.set_kv_buffer(
        layer,
        releases.write_location(store.pool, store.slots),
        k.view(k.shape[0], layer.tp_k_head_num, layer.qk_head_dim),
        v.view(v.shape[0], layer.tp_v_head_num, layer.v_head_dim),
        store.k_scale,
        store.v_scale,
    )
    return query, key


def _unfit(
    rope: RotaryEmbedding,
    cache: LayerCache,
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None,
    store: KVStore,
) -> str | None:
    value, q_heads, head = store.value, store.layer.tp_q_head_num, rope.head_size
    kv_heads = cache.k.shape[1]
    angles = rope.cos_sin_cache
    if positions.dim() != 1:
        return f"positions are {positions.dim()}-D"
    if offsets is not None:
        return "offsets of positions"
    if angles.shape[1] != rope.rotary_dim or angles.device != query.device:
        return (
            f"cos_sin_cache {list(angles.shape)} on {angles.device}, rotary dim {rope.rotary_dim}"
        )
    if not query.dtype == key.dtype == value.dtype in (torch.bfloat16, torch.float16):
        return f"q is {query.dtype}, k {key.dtype}, v {value.dtype}"
    if cache.k.dtype not in (key.dtype, *E4M3_MAX):
        return f"k is {key.dtype}, the cache {cache.k.dtype}"
    if cache.k.shape[2] != head or q_heads % kv_heads:
        return f"{q_heads} q heads of {head}, the cache's rows {list(cache.k.shape[1:])}"
    if not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        return "heads with gaps"
    return None
