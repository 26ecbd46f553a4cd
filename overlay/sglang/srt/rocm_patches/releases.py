"""What lies elsewhere from one release of sglang to the next: one name each, for all of them.

Guards ask here for what a batch once carried and a context now holds. Kernels never do.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sglang.srt.mem_cache.memory_pool import KVCache
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def kv_pool(forward_batch: "ForwardBatch") -> "KVCache":
    """The batch's pool: its own up to 0.5.12, that of the running forward pass from 0.5.13 on."""
    if hasattr(forward_batch, "token_to_kv_pool"):
        return forward_batch.token_to_kv_pool
    from sglang.srt.model_executor.forward_context import get_token_to_kv_pool

    return get_token_to_kv_pool()


def attention_backend(forward_batch: "ForwardBatch") -> object:
    """What the batch's layers are handed to, found as `kv_pool` is."""
    if hasattr(forward_batch, "attn_backend"):
        return forward_batch.attn_backend
    from sglang.srt.model_executor.forward_context import get_attn_backend

    return get_attn_backend()


def write_location(pool: "KVCache", slots: torch.Tensor) -> Any:
    """What `pool.set_kv_buffer` takes for the slots of a full pool.

    From 0.5.14 on a sliding-window pool does not translate slots by itself.
    """
    try:
        from sglang.srt.mem_cache.memory_pool import KVWriteLoc
    except ImportError:
        return slots
    mapping = getattr(pool, "full_to_swa_index_mapping", None)
    return KVWriteLoc(slots, None if mapping is None else mapping[slots])


def triton_decode() -> Callable:
    """The triton backend's decode; kernels have a package of their own from 0.5.16 on."""
    try:
        from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd
    except ImportError:
        from sglang.srt.layers.attention.triton_ops.decode_attention import decode_attention_fwd
    return decode_attention_fwd


def layout(pool: "KVCache") -> str:
    """How a pool's rows lie: "nhd" [slots, heads, head size] in all pools up to 0.5.12.

    Later: hnd, vectorized_5d (SGLANG_AITER_KV_CACHE_LAYOUT), and quantised rows, such as FP4.
    """
    if getattr(pool, "is_quantized_kv_cache", False):
        return "quantised"
    return getattr(pool, "kv_cache_layout", "nhd")


def decode_context_parallel(forward_batch: "ForwardBatch") -> bool:
    """Whether each rank stores some of the batch's tokens alone, which it can from 0.5.16 on."""
    return getattr(forward_batch, "dcp_kv_mask", None) is not None
