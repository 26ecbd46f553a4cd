"""Scenario: upstream's LayerNorm."""

import torch

from ..platform import recorder
from . import setting


def layernorm(platform, x, weight, bias, eps, affine=True, use_bias=True, native=False):
    """native: as under torch.compile, which swaps the forward method."""
    from sglang.srt.layers.layernorm import LayerNorm

    setting.server_arguments()
    layer = LayerNorm(
        x.shape[-1], eps=eps, elementwise_affine=affine, bias=use_bias, dtype=weight.dtype
    ).to(platform.device)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    if native:
        layer.enter_torch_compile(num_tokens=1)
    before = x.clone()
    with recorder.measured():
        y = layer(x)
    assert torch.equal(x, before), "LayerNorm changed its input"
    return {"y": y, "declined": setting.declined("layernorm")}
