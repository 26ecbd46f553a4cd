"""Scenario: upstream's AiterAttnBackend, one extend and one decode step of a small batch."""

import types
from unittest import mock

import torch

from ..platform import recorder
from ..platform.trees import RELEASES
from . import pools, setting

REQUESTS, CONTEXT = 3, 64
# What a release's aiter backend attends with in decode, "swa" being over a sliding-window pool.
DECODES = dict.fromkeys(RELEASES, ("ragged", "unified", "swa")) | {"0.5.9": ("ragged",)}
# Whether it verifies drafts. 0.5.9 leaves where each request's drafts begin in a local variable.
VERIFIES = {release: release != "0.5.9" for release in RELEASES}


def aiter_backend(platform, pool, heads, kv_heads, head_dim, requests, cache, context=None):
    from sglang.srt.configs.model_config import AttentionArch
    from sglang.srt.layers.attention import aiter_backend as upstream

    model = types.SimpleNamespace(
        dtype=torch.bfloat16,
        is_multimodal=False,
        num_attention_heads=heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        get_num_kv_heads=lambda parallel: kv_heads,
        attention_arch=AttentionArch.MHA,
        context_len=context or CONTEXT,
    )
    runner = types.SimpleNamespace(
        dtype=torch.bfloat16,
        model_config=model,
        server_args=types.SimpleNamespace(
            page_size=pool.page_size, speculative_num_draft_tokens=None, speculative_num_steps=None
        ),
        device="cuda",
        kv_cache_dtype=pools.cache_dtype(platform, cache),
        req_to_token_pool=requests,
        token_to_kv_pool=pool,
        page_size=pool.page_size,
        sliding_window_size=None,
    )
    alone = {"is_dp_attention_enabled": lambda: False}
    if hasattr(upstream, "get_parallel"):  # from 0.5.16 on
        one = types.SimpleNamespace(attn_tp_size=1)
        alone["get_parallel"] = lambda: one
    else:
        alone["get_attention_tp_size"] = lambda: 1
    with mock.patch.multiple(upstream, **alone):
        return upstream.AiterAttnBackend(runner)


def extend_then_decode(platform, cache, q, k, v, lengths, k_scale=None, v_scale=None):
    """q, k, v: all tokens of the requests' extends, then one token of each request's decode."""
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    setting.server_arguments()
    (_, heads, head_dim), kv_heads = q.shape, k.shape[1]
    device, count = platform.device, len(lengths)
    pool = pools.mha_pool(platform, cache, kv_heads, head_dim)
    requests = ReqToTokenPool(
        size=REQUESTS, max_context_len=CONTEXT, device="cuda", enable_memory_saver=False
    )
    width = pools.SLOTS // count
    for i in range(count):
        mine = torch.arange(1 + i * width, 1 + (i + 1) * width, dtype=torch.int32)
        requests.req_to_token[i, :width] = mine.to(device)
    layer = setting.attention_layer(
        heads, kv_heads, head_dim, **setting.scales(k_scale, v_scale, device)
    )
    backend = aiter_backend(platform, pool, heads, kv_heads, head_dim, requests, cache)
    lengths = lengths.to(torch.int64)
    indices = torch.arange(count, device=device)

    def step(mode, seq_lens, slots, rows):
        batch = setting.forward_batch(mode, seq_lens, slots, pool)
        backend.init_forward_metadata(batch)
        forward = backend.forward_decode if mode.is_decode() else backend.forward_extend
        query, key, value = (each[rows].clone() for each in (q, k, v))
        return lambda: forward(query.flatten(1), key, value, layer, batch)

    total = int(lengths.sum())
    slots = [requests.req_to_token[i, : int(lengths[i])] for i in range(count)]
    extended = step(ForwardMode.EXTEND, lengths, torch.cat(slots).long(), slice(0, total))()
    new = requests.req_to_token[indices, lengths].long()
    decode = step(ForwardMode.DECODE, lengths + 1, new, slice(total, total + count))
    with recorder.measured():
        decoded = decode()
    outputs = {"extended": extended, "decoded": decoded, "slots": torch.cat([*slots, new]).long()}
    return outputs | pools.contents(pool)
