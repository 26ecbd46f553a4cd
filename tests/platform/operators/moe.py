"""Routing and experts."""

import enum

import torch

from . import chip, need, need_dtype, need_inside, need_shape, operator, provided
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


def _need_chosen(name, gating_output, topk_weights, topk_ids):
    """What a router writes: fp32 and int32, the same number for each token."""
    need_dtype(name, torch.float32, topk_weights=topk_weights)
    need_dtype(name, torch.int32, topk_ids=topk_ids)
    need_shape(name, (len(gating_output), topk_ids.shape[-1]), topk_ids=topk_ids)
    need_shape(name, topk_ids.shape, topk_weights=topk_weights)


@operator("aiter.fused_moe.fused_topk")
def fused_topk(hidden_states, gating_output, topk, renormalize, topk_ids=None, topk_weights=None):
    need(topk_ids is not None and topk_weights is not None, "fused_topk: no topk_ids, topk_weights")
    _need_chosen("fused_topk", gating_output, topk_weights, topk_ids)
    need_shape("fused_topk", (len(gating_output), topk), topk_ids=topk_ids)
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
    name = "biased_grouped_topk"
    _need_chosen(name, gating_output, topk_weights, topk_ids)
    need_shape(name, gating_output.shape[-1:], correction_bias=correction_bias)
    need_dtype(name, gating_output.dtype, correction_bias=correction_bias)
    need(
        gating_output.shape[-1] % num_expert_group == 0 and topk_group <= num_expert_group,
        f"{name}: topk_group {topk_group} of num_expert_group {num_expert_group}",
    )
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
    _need_chosen("topk_softmax", gating_output, topk_weights, topk_ids)
    scores = gating_output.float().softmax(-1)
    chosen = scores.topk(topk_ids.shape[1], -1).indices
    topk_weights.copy_(_take(scores, chosen, renormalize))
    topk_ids.copy_(chosen)


@operator("sgl_kernel.topk_sigmoid")
def topk_sigmoid(topk_weights, topk_ids, gating_output, renormalize=False, correction_bias=None):
    _need_chosen("topk_sigmoid", gating_output, topk_weights, topk_ids)
    if correction_bias is not None:
        need_shape("topk_sigmoid", gating_output.shape[-1:], correction_bias=correction_bias)
    scores = gating_output.float().sigmoid()
    ranked = scores if correction_bias is None else scores + correction_bias.float()
    chosen = ranked.topk(topk_ids.shape[1], -1).indices
    topk_weights.copy_(_take(scores, chosen, renormalize))
    topk_ids.copy_(chosen)


@operator("aiter.moe_sum")
def moe_sum(input, output):
    need_dtype("moe_sum", input.dtype, output=output)
    need_shape("moe_sum", (input.shape[0], *input.shape[2:]), output=output)
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
    name = "moe_align_block_size"
    need_dtype(name, torch.int32, topk_ids=topk_ids, sorted_token_ids=sorted_token_ids)
    need_dtype(name, torch.int32, experts_ids=experts_ids, num_tokens_post_pad=num_tokens_post_pad)
    flat = topk_ids.flatten() + 1
    need_inside(f"{name}: topk_ids", num_experts, id_from_1=flat)
    need(
        len(cumsum_buffer) > num_experts,
        f"{name}: cumsum_buffer of {len(cumsum_buffer)}, expected {num_experts + 1}",
    )
    blocks = int(-(-flat.bincount(minlength=num_experts) // block_size).sum())
    size = blocks * block_size
    need(
        size <= len(sorted_token_ids) and blocks <= len(experts_ids),
        f"{name}: sorted_token_ids or experts_ids shorter than {size} and {blocks}",
    )
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


def _dequantised(argument, weights, scale, quant_type, hidden_dtype):
    if quant_type == QuantType.No:
        need(scale is None, f"fused_moe: {argument}_scale for weights as they are")
        need_dtype("fused_moe", hidden_dtype, **{argument: weights})
        return weights.float()
    need_dtype("fused_moe", chip().fp8_dtype, **{argument: weights})
    need(scale is not None, f"fused_moe: {argument}_scale is None, expected one {quant_type.name}")
    need_dtype("fused_moe", torch.float32, **{f"{argument}_scale": scale})
    experts, rows, columns = weights.shape
    if quant_type == QuantType.per_Tensor:
        return weights.float() * scale.reshape(experts, 1, 1)
    if quant_type == QuantType.per_Token:
        return weights.float() * scale.reshape(experts, rows, 1)
    need(quant_type == QuantType.per_128x128, f"fused_moe: {quant_type!r}")
    need_shape("fused_moe", (experts, -(-rows // 128), -(-columns // 128)), scale=scale)
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
    a1_scale=None,
    a2_scale=None,
    bias1=None,
    bias2=None,
    hidden_pad=0,
    intermediate_pad=0,
):
    """Hidden states stay as they are where the weights are FP8; the kernels quantise them too."""
    need(expert_mask is None, "fused_moe: expert_mask")
    need(not doweight_stage1, "fused_moe: doweight_stage1")
    for given in (a1_scale, a2_scale, bias1, bias2):
        need(given is None, "fused_moe: a1_scale, a2_scale, bias1 or bias2")
    need(hidden_pad == intermediate_pad == 0, "fused_moe: hidden_pad or intermediate_pad")
    need(activation in (ActivationType.Silu, ActivationType.Gelu), f"fused_moe: {activation!r}")
    act = (
        torch.nn.functional.silu if activation == ActivationType.Silu else torch.nn.functional.gelu
    )
    name, dtype = "fused_moe", hidden_states.dtype
    need_dtype(name, (torch.bfloat16, torch.float16), hidden_states=hidden_states)
    (tokens, width), (experts, _, inner) = hidden_states.shape, w2.shape
    need_shape(name, (experts, 2 * inner, width), w1=w1)
    need_shape(name, (experts, width, inner), w2=w2)
    need_dtype(name, torch.float32, topk_weight=topk_weight)
    need_dtype(name, torch.int32, topk_ids=topk_ids)
    need_shape(name, (tokens, topk_ids.shape[-1]), topk_ids=topk_ids, topk_weight=topk_weight)
    need_inside(name, experts, topk_ids=topk_ids)
    w1 = _dequantised("w1", w1, w1_scale, quant_type, dtype)
    w2 = _dequantised("w2", w2, w2_scale, quant_type, dtype)
    x = hidden_states.float()
    out = torch.zeros_like(x)
    for expert in topk_ids.unique().tolist():
        token, choice = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ w1[expert].T).chunk(2, -1)
        hidden = (act(gate) * up).to(hidden_states.dtype).float()
        out.index_add_(0, token, hidden @ w2[expert].T * topk_weight[token, choice, None].float())
    return out.to(hidden_states.dtype)
