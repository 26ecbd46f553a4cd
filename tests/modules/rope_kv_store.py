"""Scenarios: an attention layer's way from qkv to its output, where rope may store K and V."""

import contextlib
from unittest import mock

import torch

from . import pools, rope, setting


def layer(
    platform,
    qkv,
    positions,
    slots,
    heads,
    head_dim,
    rotary_dim=None,
    neox=True,
    kind="mha",
    cache="bf16",
    window=False,
    native=False,
    k_scale=None,
    v_scale=None,
    backend="TritonAttnBackend",
    mode="DECODE",
    batch=(),
    **arguments,
):
    """qkv ``[T, (q + 2 KV heads) * head_dim]``, split, rotated and stored as gpt_oss does it.

    window: the layer slides. native: as under torch.compile, which swaps the forward method.
    backend: the attention backend, by its name in setting.attention_backend. mode: the ForwardMode.
    batch: further fields of the ForwardBatch. arguments: fields of the server's arguments.
    """
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.models.utils import create_fused_set_kv_buffer_arg, enable_fused_set_kv_buffer

    setting.server_arguments(**arguments)
    tokens = len(qkv)
    kv_heads = (qkv.shape[1] // head_dim - heads) // 2
    pool = _pool(platform, kind, cache, kv_heads, head_dim)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    q, k, v = qkv.split(sizes, dim=-1)
    attention = setting.attention_layer(
        heads,
        kv_heads,
        head_dim,
        sliding_window_size=8 if window else -1,
        **setting.scales(k_scale, v_scale, platform.device),
    )
    lengths = torch.ones(tokens, dtype=torch.int64, device=platform.device)
    forward_batch = setting.forward_batch(ForwardMode[mode], lengths, slots, pool, **dict(batch))
    forward_batch.attn_backend = setting.attention_backend(backend)
    turn = rope.rotary_embedding(platform, head_dim, rotary_dim or head_dim, neox)
    with _native(turn) if native else contextlib.nullcontext():
        fused = enable_fused_set_kv_buffer(forward_batch)
        argument = create_fused_set_kv_buffer_arg(v, attention, forward_batch) if fused else None
        q, k = turn(positions, q, k, fused_set_kv_buffer_arg=argument)
        again = enable_fused_set_kv_buffer(forward_batch)
    assert again == fused, "rope and attention are told different things"
    outputs = {"q": q, "k": k, "v": v, "table": turn.cos_sin_cache, "fused": fused}
    outputs |= pools.contents(pool) if hasattr(pool, "k_buffer") or kind == "swa" else {}
    return outputs | {"declined": _declined()}


@contextlib.contextmanager
def _native(turn):
    turn.enter_torch_compile(num_tokens=1)
    try:
        yield
    finally:
        turn.leave_torch_compile()


def _pool(platform, kind, cache, kv_heads, head_dim):
    if kind == "swa":
        return pools.swa_pool(platform, cache, kv_heads, head_dim)
    if kind == "mla":
        return pools.latent_pool(platform, cache, nsa=False)
    if kind == "subclass":
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        class OtherLayout(MHATokenToKVPool):
            pass

        with mock.patch("sglang.srt.mem_cache.memory_pool.MHATokenToKVPool", OtherLayout):
            return pools.mha_pool(platform, cache, kv_heads, head_dim)
    return pools.mha_pool(platform, cache, kv_heads, head_dim)


def _declined() -> list[str]:
    from sglang.srt import rocm_patches

    return rocm_patches.report()["slugs"]["rope-kv-store"]["declined"]
