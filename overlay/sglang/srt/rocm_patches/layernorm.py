"""LayerNorm in one launch, if x, the layer and its parameters all have bf16 or all have fp16.

Upstream (https://github.com/sgl-project/sglang/pull/22424) calls aiter's CK operator if x has the
dtype that the layer was *constructed* with. This module differs in three points.

**Parameters.** The operator reads fp32 parameters as if they were bf16, without an error
(https://github.com/ROCm/ATOM/pull/1796), and it requires both weight and bias. So `fits` also
checks the dtypes of the parameters. It checks the layer's own dtype too, because the pristine path
computes in that dtype.

**Rounding.** On gfx942 the operator truncates its bf16 result instead of rounding it: composable
kernel's CK_TILE_FLOAT_TO_BFLOAT16_DEFAULT is 2 (truncation), and aiter's module_norm does not
override it. Every output is then too small in magnitude, by half a unit in the last place on
average. On gfx950 the hardware converts, to nearest even. So gfx942 runs our own kernel. Our kernel
also handles every call that the operator does not support.

**Batches.** The bits of a row do not depend on the number of rows: see layernorm_kernel.py.

While this patch is active, the indexer's k_norm is constructed in bf16. If the checkpoint holds its
parameters in fp32, they are rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.rocm_patches import Slug, arch

if TYPE_CHECKING:
    from sglang.srt.layers.layernorm import LayerNorm

SLUG = Slug("layernorm")
ACTIVE = SLUG.active

if ACTIVE:
    from sglang.srt.rocm_patches.aiter_ops import aiter_op
    from sglang.srt.rocm_patches.layernorm_kernel import layernorm

    # (x [rows, N] contiguous, weight, bias, eps) -> like x; fp32 inside.
    _aiter_layernorm = aiter_op("aiter", "layernorm2d_fwd") if arch() == "gfx950" else None


def _applied(norm: LayerNorm) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The weight and bias that the layer applies; it holds both tensors even if it uses neither."""
    return (
        norm.weight if norm.elementwise_affine else None,
        norm.bias if norm.use_bias else None,
    )


def fits(norm: LayerNorm, x: torch.Tensor) -> bool:
    """Whether ``forward`` can be right for this x."""
    if x.shape[-1] != norm.hidden_size:
        return False  # forward_native raises
    dtypes = [x.dtype, norm.dtype, *(p.dtype for p in _applied(norm) if p is not None)]
    if x.dtype in (torch.bfloat16, torch.float16) and len(set(dtypes)) == 1:
        return True
    SLUG.decline(
        f"x, layer and parameters are {', '.join(map(str, dtypes))}, not all bf16 or all fp16"
    )
    return False


@torch.compiler.assume_constant_result  # runs at trace time: logging in the graph would break it
def say_native() -> bool:
    """Decline for a layer that torch.compile traces in its native form, the pristine path."""
    SLUG.decline("torch.compile traces the native LayerNorm")
    return True


def forward(norm: LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """``LayerNorm.forward`` for an x ``[..., hidden_size]`` that ``fits``; always contiguous."""
    weight, bias = _applied(norm)
    eps = norm.variance_epsilon
    if (
        _aiter_layernorm is None
        or weight is None
        or bias is None
        or not x.is_contiguous()
        or x.numel() == 0
    ):
        return layernorm(x, weight, bias, eps)
    return _aiter_layernorm(x.view(-1, x.shape[-1]), weight, bias, eps).view(x.shape)
