"""Scenario: upstream's Qwen3Attention with M-RoPE, as Qwen3-VL has it, over aiter's backend."""

import contextlib

import torch

from ..platform import recorder
from . import backend, pools, setting

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 64, 128
MROPE = {"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True}


def prefill_then_decode(platform, hidden, positions, cache, k_scale=None, v_scale=None):
    """hidden ``[T, HIDDEN]``, positions ``[3, T]``: one request, whose last token is decoded."""
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.models.qwen3 import Qwen3Attention

    setting.server_arguments()
    setting.parallel_state()
    with setting.default_dtype(torch.bfloat16), torch.device("cuda"):
        layer = Qwen3Attention(
            HIDDEN, HEADS, KV_HEADS, head_dim=HEAD_DIM, rope_scaling=MROPE, rms_norm_eps=1e-6,
            max_position_embeddings=64,
        )  # fmt: skip
    setting.fill(layer, 3, 0.2)
    vars(layer.attn).update(setting.scales(k_scale, v_scale, platform.device))
    device, length = platform.device, len(hidden)
    pool = pools.mha_pool(platform, cache, KV_HEADS, HEAD_DIM)
    table = ReqToTokenPool(
        size=1, max_context_len=backend.CONTEXT, device="cuda", enable_memory_saver=False
    )
    slots = torch.arange(3, 3 + length, device=device)
    table.req_to_token[0, :length] = slots.int()
    attention = backend.aiter_backend(platform, pool, HEADS, KV_HEADS, HEAD_DIM, table, cache)
    outputs = []
    for mode, mine in (
        (ForwardMode.EXTEND, slice(0, length - 1)),
        (ForwardMode.DECODE, slice(length - 1, length)),
    ):
        lengths = torch.tensor([mine.stop], device=device)
        batch = setting.forward_batch(mode, lengths, slots[mine], pool)
        batch.attn_backend = attention
        attention.init_forward_metadata(batch)
        with recorder.measured() if mode.is_decode() else contextlib.nullcontext():
            outputs.append(layer(positions[:, mine].contiguous(), hidden[mine], batch))
    return {"out": torch.cat(outputs), "slots": slots} | pools.contents(pool)
