"""Catches parameters that aiter would misread, inputs it cannot take, a k_norm left in fp32."""

import pytest
import torch

from tests.platform.tensors import strided
from tests.references.layernorm import layernorm
from tests.tolerances import assert_bitwise, assert_close, assert_unbiased, declared

AITER = "aiter.layernorm2d_fwd"
KERNEL = "_layernorm_kernel"
SCENARIO = "tests.modules.norm:layernorm"
OPTIONS = [{"affine": False}, {"use_bias": False}, {"affine": False, "use_bias": False}]


def inputs(shape, dtype=torch.bfloat16, parameter_dtype=None):
    weight, bias = torch.randn(2, shape[-1]).to(parameter_dtype or dtype)
    return {"x": torch.randn(shape).to(dtype), "weight": weight, "bias": bias, "eps": 1e-6}


def check(result, given, affine=True, use_bias=True):
    x, weight, bias, eps = (given[name] for name in ("x", "weight", "bias", "eps"))
    truth = layernorm(x, weight if affine else None, bias if use_bias else None, eps)
    assert_close(result.outputs["y"], truth, declared("layernorm"), reduction=x.shape[-1])
    assert_unbiased(result.outputs["y"], truth)


@pytest.fixture
def without_aiters_layernorm(arms):
    return arms.patched_without(AITER)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_contiguous_x_of_any_rank_goes_to_aiter_where_it_rounds(arms, platform, dtype):
    ours = platform.arch == "gfx942"
    for shape in ((128,), (7, 128), (2, 3, 65)):
        given = inputs(shape, dtype)
        result = arms.patched.run(SCENARIO, **given)
        check(result, given)
        operators, kernels = ({}, {KERNEL: 1}) if ours else ({AITER: 1}, {})
        assert (result.operators, result.kernels) == (operators, kernels)


@pytest.mark.parametrize("options", OPTIONS, ids=",".join)
def test_what_aiter_cannot_leave_out_goes_to_our_kernel(arms, options):
    given = inputs((7, 128))
    result = arms.patched.run(SCENARIO, **given, **options)
    check(result, given, **options)
    assert (result.operators, result.kernels, result.launches) == ({}, {KERNEL: 1}, 1)


def test_rows_with_gaps_go_to_our_kernel_uncopied(arms):
    given = inputs((7, 128))
    given["x"] = strided(given["x"])
    result = arms.patched.run(SCENARIO, **given)
    check(result, given)
    assert (result.kernels, result.launches) == ({KERNEL: 1}, 1)


def test_no_rows_launch_nothing(arms):
    assert arms.patched.run(SCENARIO, **inputs((0, 128))).launches == 0


@pytest.mark.parametrize(
    ("dtype", "parameter_dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.float32),
    ],
    ids=str,
)
def test_types_that_differ_or_are_wide_take_upstreams_path(arms, dtype, parameter_dtype):
    given = inputs((7, 128), dtype, parameter_dtype)
    result = arms.patched.run(SCENARIO, **given)
    expected = arms.pristine.run(SCENARIO, **given)
    assert_bitwise(result.outputs["y"], expected.outputs["y"])
    assert result.launches == expected.launches


def test_a_layer_without_parameters_computes_in_its_own_type(arms):
    given = inputs((5, 64), torch.float16, torch.bfloat16) | {"affine": False, "use_bias": False}
    given["x"] /= 128
    result = arms.patched.run(SCENARIO, **given)
    expected = arms.pristine.run(SCENARIO, **given)
    assert_bitwise(result.outputs["y"], expected.outputs["y"])
    reason = "x, layer and parameters are torch.float16, torch.bfloat16, not all bf16 or all fp16"
    assert result.outputs["declined"] == [reason]


def test_torch_compiles_native_form_is_upstreams_and_says_so(arms):
    given = inputs((5, 64)) | {"native": True}
    result = arms.patched.run(SCENARIO, **given)
    expected = arms.pristine.run(SCENARIO, **given)
    assert_bitwise(result.outputs["y"], expected.outputs["y"])
    assert result.outputs["declined"] == ["torch.compile traces the native LayerNorm"]


def test_a_row_is_rounded_to_nearest_on_both_chips(arms):
    """Of sglang's own test_layernorm, the smallest that aiter's operator on gfx942 fails."""
    torch.manual_seed(12)
    weight = torch.empty(8).normal_(1.0, 0.1).bfloat16()
    bias = torch.empty(8).normal_(0.0, 0.1).bfloat16()
    given = {"weight": weight, "bias": bias, "eps": 1e-6}
    given["x"] = torch.randn(1, 8, dtype=torch.bfloat16) / 16
    result = arms.patched.run(SCENARIO, **given)
    assert_bitwise(result.outputs["y"], layernorm(**given).bfloat16())
    check(result, given)


def test_an_aiter_without_the_operator_leaves_it_to_our_kernel(without_aiters_layernorm):
    given = inputs((7, 128))
    result = without_aiters_layernorm.run(SCENARIO, **given)
    check(result, given)
    assert (result.operators, result.kernels) == ({}, {KERNEL: 1})


def test_with_aiter_switched_off_our_kernel_runs(arms):
    given = inputs((7, 128))
    result = arms.patched_with(SGLANG_USE_AITER="0").run(SCENARIO, **given)
    check(result, given)
    assert (result.operators, result.kernels) == ({}, {KERNEL: 1})


def test_k_norm_is_one_launch_in_bf16(arms):
    given = {"x": torch.randn(9, 128).bfloat16()}
    result = arms.patched.run("tests.modules.indexer:k_norm", **given)
    parameters = {name: result.outputs[name] for name in ("weight", "bias")}
    assert {each.dtype for each in parameters.values()} == {torch.bfloat16}
    assert result.launches == 1
    check(result, given | parameters | {"eps": 1e-6})
    assert arms.pristine.run("tests.modules.indexer:k_norm", **given).launches > 1


def test_switched_off_k_norm_is_upstreams(arms, off):
    given = {"x": torch.randn(9, 128).bfloat16()}
    expected = arms.pristine.run("tests.modules.indexer:k_norm", **given)
    result = off.run("tests.modules.indexer:k_norm", **given)
    for name, value in expected.outputs.items():
        assert_bitwise(result.outputs[name], value, name)
    assert result.launches == expected.launches
