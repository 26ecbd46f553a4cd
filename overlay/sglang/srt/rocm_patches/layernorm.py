"""LayerNorm in one launch where x, the layer and its parameters share bf16 or fp16.

Upstream (https://github.com/sgl-project/sglang/pull/22424) calls aiter's CK operator where x has
the dtype that the layer was *constructed* with. Three things are decided otherwise here.

**Parameters.** The operator reads fp32 parameters as if they were bf16, without an error
(https://github.com/ROCm/ATOM/pull/1796), and it cannot do without weight or bias. So the tensors
are asked too. The layer's own dtype counts as well: the pristine path computes in it.

**Rounding.** On gfx942 the operator cuts a bf16 result off instead of rounding it: composable
kernel's CK_TILE_FLOAT_TO_BFLOAT16_DEFAULT is 2, truncation, and aiter's module_norm sets no other.
Every output is then too small in magnitude, by half a unit in the last place on average. On gfx950
the conversion is the hardware's, to nearest even. So gfx942 runs a kernel of our own, and so does
whatever the operator cannot take.

**Batches.** The bits of a row do not depend on how many rows are launched: layernorm_kernel.py.

The indexer's k_norm is made in bf16 while this is active; its parameters are rounded where the
checkpoint holds them in fp32.
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
    """weight and bias; the layer always has both tensors, used or not."""
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


@torch.compiler.assume_constant_result  # runs as it is traced: a log line would break the graph
def say_native() -> bool:
    """For a layer that torch.compile has in its native form, which is the pristine path."""
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
