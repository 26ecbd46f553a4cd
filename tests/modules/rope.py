"""Scenario: upstream's RotaryEmbedding, alone and with the KV store that models fuse into it."""

import torch

from ..platform import recorder
from . import pools, setting


def rotary_embedding(platform, head_dim, rotary_dim, neox):
    from sglang.srt.layers.rotary_embedding import get_rope

    with torch.device("cuda"):  # as the model loader does
        return get_rope(
            head_dim,
            rotary_dim=rotary_dim,
            max_position=256,
            base=10000,
            is_neox_style=neox,
            dtype=torch.bfloat16,
        )


def rotate(platform, positions, q, k, head_dim, rotary_dim, neox):
    setting.server_arguments()
    rope = rotary_embedding(platform, head_dim, rotary_dim, neox)
    with recorder.measured():
        q, k = rope(positions, q, k)
    return {"q": q, "k": k, "table": rope.cos_sin_cache}


def rotate_and_store(
    platform, kind, cache, positions, q, k, v, slots, heads, neox, k_scale=None, v_scale=None
):
    """As qwen3_moe and gpt_oss do it: one flag for the fused store and for save_kv_cache."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.models.utils import create_fused_set_kv_buffer_arg, enable_fused_set_kv_buffer

    setting.server_arguments()
    tokens, kv_heads, head_dim = v.shape
    if kind == "swa":
        pool = pools.swa_pool(platform, cache, kv_heads, head_dim)
    else:
        pool = pools.mha_pool(platform, cache, kv_heads, head_dim)
    layer = setting.attention_layer(
        heads,
        kv_heads,
        head_dim,
        sliding_window_size=8 if kind == "swa" else -1,
        **setting.scales(k_scale, v_scale, platform.device),
    )
    lengths = torch.ones(tokens, dtype=torch.int64, device=platform.device)
    batch = setting.forward_batch(ForwardMode.DECODE, lengths, slots, pool)
    batch.attn_backend = setting.attention_backend("TritonAttnBackend")
    rope = rotary_embedding(platform, head_dim, head_dim, neox)
    fused = enable_fused_set_kv_buffer(batch)
    with recorder.measured():
        argument = create_fused_set_kv_buffer_arg(v, layer, batch) if fused else None
        q, k = rope(positions, q, k, fused_set_kv_buffer_arg=argument)
        if not fused:
            rows = k.view(tokens, kv_heads, head_dim).clone()
            pool.set_kv_buffer(layer, slots, rows, v.clone(), layer.k_scale, layer.v_scale)
    outputs = {"q": q, "k": k, "table": rope.cos_sin_cache, "fused": fused}
    return outputs | pools.contents(pool)
