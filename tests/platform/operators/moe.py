"""Routing and experts."""

import enum

import torch

from . import need, operator, provided
from .quantisation import QuantType


class ActivationType(enum.IntEnum):
    No = -1
    Silu = 0
    Gelu = 1
    Swiglu = 2


provided["aiter.ActivationType"] = ActivationType


def _take(scores, chosen, renormalise):
    weights = scores.gather(1, chosen)
    return weights / weights.sum(-1, keepdim=True) if renormalise else weights


@operator("aiter.fused_moe.fused_topk")
def fused_topk(hidden_states, gating_output, topk, renormalize, topk_ids=None, topk_weights=None):
    scores = gating_output.float().softmax(-1)
    chosen = scores.topk(topk, -1).indices
    topk_weights.copy_(_take(scores, chosen, renormalize))
    topk_ids.copy_(chosen)
    return topk_weights, topk_ids


@operator("aiter.biased_grouped_topk")
def biased_grouped_topk(
    gating_output,
    correction_bias,
    topk_weights,
    topk_ids,
    num_expert_group,
    topk_group,
    need_renorm,
    routed_scaling_factor=1.0,
):
    scores = gating_output.float().sigmoid()
    biased = scores + correction_bias.float()
    tokens, experts = scores.shape
    each = experts // num_expert_group
    group_score = biased.view(tokens, num_expert_group, each).topk(min(2, each), -1).values.sum(-1)
    kept = torch.zeros_like(group_score).scatter_(1, group_score.topk(topk_group, -1).indices, 1)
    biased = biased.masked_fill(kept.repeat_interleave(each, 1) == 0, -torch.inf)
    chosen = biased.topk(topk_ids.shape[1], -1).indices
    topk_weights.copy_(_take(scores, chosen, need_renorm) * routed_scaling_factor)
    topk_ids.copy_(chosen)


@operator("sgl_kernel.topk_softmax")
def topk_softmax(topk_weights, topk_ids, gating_output, renormalize=False):
    scores = gating_output.float().softmax(-1)
    chosen = scores.topk(topk_ids.shape[1], -1).indices
    topk_weights.copy_(_take(scores, chosen, renormalize))
    topk_ids.copy_(chosen)


@operator("sgl_kernel.topk_sigmoid")
def topk_sigmoid(topk_weights, topk_ids, gating_output, renormalize=False, correction_bias=None):
    scores = gating_output.float().sigmoid()
    ranked = scores if correction_bias is None else scores + correction_bias.float()
    chosen = ranked.topk(topk_ids.shape[1], -1).indices
    topk_weights.copy_(_take(scores, chosen, renormalize))
    topk_ids.copy_(chosen)


@operator("aiter.moe_sum")
def moe_sum(input, output):
    output.copy_(input.float().sum(1))


@operator("sgl_kernel.moe_align_block_size")
def moe_align_block_size(
    topk_ids,
    num_experts,
    block_size,
    sorted_token_ids,
    experts_ids,
    num_tokens_post_pad,
    cumsum_buffer,
    pad_sorted_token_ids=False,
):
    """Experts are numbered from 1 in the kernel: 0 is what is filtered out (id -1)."""
    flat = topk_ids.flatten() + 1
    if pad_sorted_token_ids:
        sorted_token_ids.fill_(flat.numel())
    start = 0
    for expert in range(num_experts):
        mine = (flat == expert).nonzero().flatten()
        blocks = -(-len(mine) // block_size)
        sorted_token_ids[start : start + len(mine)] = mine.to(sorted_token_ids.dtype)
        first = start // block_size
        experts_ids[first : first + blocks] = expert - 1
        start += blocks * block_size
    num_tokens_post_pad.fill_(start)


def _dequantised(weights, scale, quant_type):
    if scale is None:
        return weights.float()
    need(weights.element_size() == 1, f"fused_moe: scale for weights of {weights.dtype}")
    experts, rows, columns = weights.shape
    if quant_type == QuantType.per_Tensor:
        return weights.float() * scale.reshape(experts, 1, 1)
    if quant_type == QuantType.per_Token:
        return weights.float() * scale.reshape(experts, rows, 1)
    need(quant_type == QuantType.per_128x128, f"fused_moe: {quant_type!r}")
    blocks = scale.repeat_interleave(128, 1).repeat_interleave(128, 2)
    return weights.float() * blocks[:, :rows, :columns]


@operator("aiter.fused_moe.fused_moe")
def fused_moe(
    hidden_states,
    w1,
    w2,
    topk_weight,
    topk_ids,
    expert_mask=None,
    activation=ActivationType.Silu,
    quant_type=QuantType.No,
    doweight_stage1=False,
    w1_scale=None,
    w2_scale=None,
):
    need(expert_mask is None, "fused_moe: expert_mask")
    need(not doweight_stage1, "fused_moe: doweight_stage1")
    need(activation in (ActivationType.Silu, ActivationType.Gelu), f"fused_moe: {activation!r}")
    act = (
        torch.nn.functional.silu if activation == ActivationType.Silu else torch.nn.functional.gelu
    )
    w1, w2 = (_dequantised(w, s, quant_type) for w, s in ((w1, w1_scale), (w2, w2_scale)))
    x = hidden_states.float()
    out = torch.zeros_like(x)
    for expert in topk_ids.unique().tolist():
        token, choice = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ w1[expert].T).chunk(2, -1)
        hidden = (act(gate) * up).to(hidden_states.dtype).float()
        out.index_add_(0, token, hidden @ w2[expert].T * topk_weight[token, choice, None].float())
    return out.to(hidden_states.dtype)
