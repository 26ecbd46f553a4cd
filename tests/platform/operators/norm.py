"""aiter's norms: fp32 inside, rounded as the chip's compiled kernels round."""

import torch

from . import ck_cast, need, need_dtype, need_shape, operator
from .quantisation import QuantType

HALF = (torch.bfloat16, torch.float16)


def _need_rows(name, x, *parameters):
    need(x.dim() == 2, f"{name}: {x.dim()}-D input, the kernel takes rows of a matrix")
    need(x.stride(-1) == 1, f"{name}: rows that are not contiguous, strides {x.stride()}")
    need(x.dtype in HALF, f"{name}: input of {x.dtype}")
    for parameter in parameters:
        # The kernel reinterprets other types without a word.
        need(parameter.dtype == x.dtype, f"{name}: {parameter.dtype} parameter for {x.dtype}")
        need(parameter.is_contiguous(), f"{name}: parameter that is not contiguous")
        need(parameter.numel() == x.shape[-1], f"{name}: parameter of {parameter.numel()} values")


@operator("aiter.layernorm2d_fwd", "aiter.layer_norm", "aiter.ops.norm.layernorm2d_fwd")
def layernorm2d_fwd(input, weight, bias, epsilon=1e-5, x_bias=None):
    _need_rows("layernorm2d_fwd", input, weight, bias)
    need(x_bias is None, "layernorm2d_fwd: x_bias")
    x = input.float()
    y = torch.nn.functional.layer_norm(x, x.shape[-1:], weight.float(), bias.float(), epsilon)
    return ck_cast(y, input.dtype)


def _rmsnorm(x, weight, epsilon):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight.float()


@operator("aiter.rmsnorm2d_fwd")
def rmsnorm2d_fwd(input, weight, epsilon, use_model_sensitive_rmsnorm=0):
    _need_rows("rmsnorm2d_fwd", input, weight)
    need(use_model_sensitive_rmsnorm == 0, "rmsnorm2d_fwd: use_model_sensitive_rmsnorm")
    return ck_cast(_rmsnorm(input.float(), weight, epsilon), input.dtype)


@operator("aiter.rmsnorm2d_fwd_with_add")
def rmsnorm2d_fwd_with_add(
    out, input, residual_in, residual_out, weight, epsilon, use_model_sensitive_rmsnorm=0
):
    _need_rows("rmsnorm2d_fwd_with_add", input, weight)
    need(use_model_sensitive_rmsnorm == 0, "rmsnorm2d_fwd_with_add: use_model_sensitive_rmsnorm")
    rows = {"out": out, "residual_in": residual_in, "residual_out": residual_out}
    need_dtype("rmsnorm2d_fwd_with_add", input.dtype, **rows)
    need_shape("rmsnorm2d_fwd_with_add", input.shape, **rows)
    summed = input.float() + residual_in.float()
    residual_out.copy_(ck_cast(summed, input.dtype))
    out.copy_(ck_cast(_rmsnorm(summed, weight, epsilon), input.dtype))


@operator("aiter.ops.fused_qk_rmsnorm_group_quant.fused_qk_rmsnorm")
def fused_qk_rmsnorm(
    q_out_quantized,
    k_out,
    q,
    q_weight,
    q_epsilon,
    k,
    k_weight,
    k_epsilon,
    quant_type=None,
):
    """As of aiter#2958: both norms into given memory, unquantised."""
    name = "fused_qk_rmsnorm"
    need(quant_type == QuantType.No, f"{name}: {quant_type!r}")
    for x, weight, epsilon, out in (
        (q, q_weight, q_epsilon, q_out_quantized),
        (k, k_weight, k_epsilon, k_out),
    ):
        _need_rows(name, x, weight)
        need_dtype(name, x.dtype, out=out)
        need_shape(name, x.shape, out=out)
        out.copy_(ck_cast(_rmsnorm(x.float(), weight, epsilon), x.dtype))
