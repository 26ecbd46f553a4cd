"""LayerNorm in fp64, and aiter's CK operator as its source describes it."""

import torch


def layernorm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """The fp64 truth for x ``[..., N]``; weight and bias ``[N]`` or None. Biased variance."""
    size = x.shape[-1]
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != (size,):
            raise ValueError(f"{name} is {tuple(parameter.shape)}, not ({size},)")
    x = x.double()
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    y = (x - mean) / (variance + eps).sqrt()
    if weight is not None:
        y = y * weight.double()
    if bias is not None:
        y = y + bias.double()
    return y


def aiter_layernorm2d_fwd(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, *, truncate: bool
) -> torch.Tensor:
    """aiter's ``layernorm2d_fwd``: fp32 inside, x's dtype out.

    truncate: CK rounds bf16 outputs toward zero (gfx942), not to nearest even (gfx950).
    What the real operator reads wrongly without an error raises ValueError: more or fewer than two
    dimensions, gaps between elements, parameters of another dtype.
    """
    if x.dim() != 2 or x.stride(1) != 1:
        raise ValueError(f"x is {tuple(x.shape)} with strides {x.stride()}, not 2-D rows")
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x is {x.dtype}")
    if weight.dtype != x.dtype or bias.dtype != x.dtype:
        raise ValueError(f"x is {x.dtype}, weight {weight.dtype}, bias {bias.dtype}")
    y = layernorm(x, weight, bias, eps).float()
    if truncate and x.dtype == torch.bfloat16:
        y = (y.view(torch.int32) & -0x10000).view(torch.float32)
    return y.to(x.dtype)
