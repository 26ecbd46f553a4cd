"""Scenarios: upstream's NSA indexer, the parts that write its K cache and scale its head gates."""

import types

import torch

from ..platform import recorder
from . import pools, setting

HEAD_DIM, ROPE_DIM, HIDDEN = 128, 64, 256


def indexer(platform, heads=32, hidden=HIDDEN):
    from sglang.srt.layers.attention.nsa.nsa_indexer import Indexer

    setting.server_arguments(attention_backend="nsa")
    setting.parallel_state()
    with setting.default_dtype(torch.bfloat16):
        layer = Indexer(
            hidden_size=hidden,
            index_n_heads=heads,
            index_head_dim=HEAD_DIM,
            rope_head_dim=ROPE_DIM,
            index_topk=2048,
            q_lora_rank=128,
            max_position_embeddings=512,
            rope_theta=10000.0,
            layer_id=0,
            scale_fmt="ue8m0",
        )
    layer = layer.to(platform.device)
    setting.fill(layer, seed=0)
    return layer


def _prefill(slots, pool):
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    seq_lens = torch.tensor([len(slots)], device=slots.device)
    return setting.forward_batch(ForwardMode.EXTEND, seq_lens, slots, pool)


def store(platform, key, slots, scale_fmt="ue8m0", gap=0):
    """A short prefill's store; gap: elements between the rows of key, and between the slots."""
    from sglang.srt.layers.attention.nsa.tilelang_kernel import act_quant

    layer = indexer(platform)
    layer.scale_fmt = scale_fmt
    layer._get_k_bf16 = lambda *_: key
    pool = pools.latent_pool(platform, "bf16", nsa=True)
    if gap:
        slots = slots.repeat_interleave(1 + gap)[:: 1 + gap]
    batch = _prefill(slots, pool)
    with recorder.measured():
        layer._forward_cuda_k_only(None, None, batch, 0, act_quant, False, None, False)
    return {"rows": pool.get_index_k_with_scale_buffer(layer_id=0).clone()}


def store_of_short_prefill(platform, x, positions, slots):
    """`_forward_cuda_k_only`, which computes K alone."""
    from sglang.srt.layers.attention.nsa.tilelang_kernel import act_quant

    layer = indexer(platform)
    pool = pools.latent_pool(platform, "bf16", nsa=True)
    batch = _prefill(slots, pool)
    with recorder.measured():
        layer._forward_cuda_k_only(x, positions, batch, 0, act_quant, False, None, False)
    return {"rows": pool.get_index_k_with_scale_buffer(layer_id=0).clone()}


def keys(platform, x, positions):
    """The index keys of the prefill that computes them alone, and of every other forward."""
    layer = indexer(platform)
    batch = types.SimpleNamespace(nsa_cp_metadata=None)
    latent = torch.zeros(len(x), 128, dtype=x.dtype, device=x.device)
    _, beside_query = layer._get_q_k_bf16(latent, x, positions, False, forward_batch=batch)
    return {"alone": layer._get_k_bf16(x, positions, False), "beside_query": beside_query}


def forward(platform, x, query, key, slots, scale_fmt="ue8m0"):
    """`forward_cuda` in decode, query ``[T, heads, 128]`` and key ``[T, 128]`` being given.

    It ends where the selection would begin, as for a rank whose tokens are all padding.
    """
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    layer = indexer(platform, query.shape[1])
    layer.scale_fmt = scale_fmt
    layer._get_q_k_bf16 = lambda *_, **__: (query, key)
    gates = []
    layer._get_logits_head_gate = lambda *given: gates.append(
        type(layer)._get_logits_head_gate(layer, *given)
    )
    pool = pools.latent_pool(platform, "bf16", nsa=True)
    batch = setting.forward_batch(ForwardMode.DECODE, torch.ones_like(slots), slots, pool)
    batch.seq_lens_cpu = batch.seq_lens_cpu[:0]
    batch.attn_backend = types.SimpleNamespace(get_indexer_metadata=lambda *_: "metadata")
    with recorder.measured():
        layer.forward_cuda(x, x, None, batch, 0)
    rows = pool.get_index_k_with_scale_buffer(layer_id=0).clone()
    return {"rows": rows, "gates": gates[0], "weight": layer.weights_proj.weight.detach()}


def head_gates(platform, x, q_scale, deterministic=False):
    """`_get_logits_head_gate`, the weight that it projected with, and why another way was taken."""
    layer = indexer(platform, q_scale.shape[1], x.shape[1])
    setting.server_arguments(attention_backend="nsa", enable_deterministic_inference=deterministic)
    setting.declined("indexer")
    with recorder.measured():
        gates = layer._get_logits_head_gate(x, q_scale)
    weight = layer.weights_proj.weight.detach()
    return {"gates": gates, "weight": weight, "declined": setting.declined("indexer")}


def k_norm(platform, x):
    layer = indexer(platform)
    with recorder.measured():
        y = layer.k_norm(x)
    return {"y": y, "weight": layer.k_norm.weight.detach(), "bias": layer.k_norm.bias.detach()}
