"""Catches a LayerNorm that is another function for some type, rank or option, or when off."""

import pytest
import torch

from tests.tolerances import ONE_ULP, assert_bitwise, assert_close

SLUG = "layernorm"

SHAPES = [(7, 128), (2, 3, 64), (0, 128), (1, 1023)]
OPTIONS = [{}, {"affine": False}, {"use_bias": False}]


def truth(x, weight, bias, eps, affine=True, use_bias=True):
    return torch.nn.functional.layer_norm(
        x.double(),
        x.shape[-1:],
        weight.double() if affine else None,
        bias.double() if use_bias else None,
        eps,
    )


def inputs(shape, dtype, weight_dtype):
    width = shape[-1]
    return {
        "x": torch.randn(shape).to(dtype),
        "weight": (1 + torch.randn(width) / 8).to(weight_dtype),
        "bias": torch.randn(width).to(weight_dtype),
        "eps": 1e-6,
    }


@pytest.mark.parametrize("options", OPTIONS, ids=lambda each: ",".join(each) or "all")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layernorm_is_layernorm(either_arm, shape, weight_dtype, options):
    given = inputs(shape, torch.bfloat16, weight_dtype)
    y = either_arm.run("tests.modules.norm:layernorm", **given, **options).outputs["y"]
    assert y.dtype == torch.bfloat16
    assert_close(y, truth(**given, **options), ONE_ULP, reduction=shape[-1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_switched_off_layernorm_is_upstreams(arms, off, shape, weight_dtype):
    given = inputs(shape, torch.bfloat16, weight_dtype)
    expected = arms.pristine.run("tests.modules.norm:layernorm", **given)
    result = off.run("tests.modules.norm:layernorm", **given)
    assert_bitwise(result.outputs["y"], expected.outputs["y"])
    assert result.launches == expected.launches


def test_layernorm_in_bf16_is_one_launch(arms):
    given = inputs((64, 128), torch.bfloat16, torch.bfloat16)
    assert arms.pristine.run("tests.modules.norm:layernorm", **given).operators == {}
    assert arms.patched.run("tests.modules.norm:layernorm", **given).launches == 1
