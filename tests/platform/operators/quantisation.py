"""aiter's fp8 quantisers: scales to 240 on gfx942 and 448 on gfx950."""

import enum

import torch

from . import (
    chip,
    need,
    need_dtype,
    need_scales,
    need_shape,
    operator,
    provided,
    saturate,
)

QuantType = enum.IntEnum(
    "QuantType",
    ["No", "per_Tensor", "per_Token", "per_1x32", "per_1x128", "per_128x128"],
    start=0,
)
provided["aiter.QuantType"] = provided["aiter.ops.enum.QuantType"] = QuantType


@operator("aiter.per_group_quant_hip")
def _per_group_quant(x, scale=None, quant_dtype=None, group_size=128, transpose_scale=False):
    name = "per_group_quant_hip"
    need(scale is None and not transpose_scale, f"{name}: scale or transpose_scale")
    need(group_size == 128, f"{name}: group_size {group_size}")
    need(quant_dtype is chip().fp8_dtype, f"{name}: quant_dtype {quant_dtype} on {chip().arch}")
    need(x.is_contiguous(), f"{name}: x of strides {x.stride()}")
    need(x.shape[-1] % 128 == 0, f"{name}: x of width {x.shape[-1]}, expected groups of 128")
    groups = x.float().unflatten(-1, (-1, 128))
    amax = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10)
    scales = amax * torch.tensor(1 / chip().fp8_max, device=x.device)
    return saturate(groups * (1 / scales), quant_dtype).view(x.shape), scales.squeeze(-1)


def _get_hip_quant(quant_type):
    need(quant_type == QuantType.per_1x128, f"get_hip_quant: {quant_type!r}")
    return _per_group_quant


provided["aiter.get_hip_quant"] = _get_hip_quant


@operator("aiter.dynamic_per_token_scaled_quant")
def dynamic_per_token_scaled_quant(out, input, scales):
    name = "dynamic_per_token_scaled_quant"
    _need_output(name, out, input)
    need_dtype(name, torch.float32, scales=scales)
    need(scales.numel() == len(input), f"{name}: {scales.numel()} scales, expected {len(input)}")
    # Rows that short are another kernel's.
    need(input.shape[-1] not in (32, 64, 128), f"{name}: input of width {input.shape[-1]}")
    amax = input.float().abs().amax(-1, keepdim=True)
    need(bool((amax > 0).all()), f"{name}: a row of zeros")
    scale = amax * torch.tensor(1 / chip().fp8_max, device=input.device)
    scales.copy_(scale.view_as(scales))
    out.copy_(saturate(input.float() * (1 / scale), out.dtype))


@operator("aiter.dynamic_per_tensor_quant")
def dynamic_per_tensor_quant(out, input, scale):
    _need_output("dynamic_per_tensor_quant", out, input)
    need_scales("dynamic_per_tensor_quant", scale=scale)
    amax = input.float().abs().amax()
    scale.copy_((amax / torch.full_like(amax, chip().fp8_max)).view_as(scale))
    out.copy_(saturate(input.float() * (1 / scale), out.dtype))


@operator("aiter.static_per_tensor_quant")
def static_per_tensor_quant(out, input, scale):
    _need_output("static_per_tensor_quant", out, input)
    need_scales("static_per_tensor_quant", scale=scale)
    out.copy_(saturate(input.float() * (1 / scale), out.dtype))


def _need_output(name, out, input):
    need_dtype(name, chip().fp8_dtype, out=out)
    need_shape(name, input.shape, out=out)
    for argument, x in (("out", out), ("input", input)):
        need(x.is_contiguous(), f"{name}: {argument} of strides {x.stride()}")
