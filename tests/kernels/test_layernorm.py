"""Catches rows that mix, a variance that cancels, parameters misread or applied unasked."""

import pytest
import torch
from sglang.srt.rocm_patches import layernorm_kernel
from sglang.srt.rocm_patches.layernorm_kernel import MAX_BLOCK, launch_parameters, layernorm

from tests.kernels import aot
from tests.kernels.recorder import believing
from tests.platform import operators
from tests.platform.tensors import ODD_SIZES, poisoned, strided
from tests.references import layernorm as reference
from tests.tolerances import assert_bitwise, assert_close, assert_unbiased, declared

NUMERICS = declared("layernorm")
EPS = 1e-6
K_NORM = 128


def inputs(platform, rows, size, dtype=torch.bfloat16, offset=0.0):
    x = torch.randn(rows, size, device=platform.device) + offset
    weight = 1 + torch.randn(size, device=platform.device) / 4
    bias = torch.randn(size, device=platform.device) / 4
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def check(x, weight, bias, eps=EPS):
    truth = reference.layernorm(x, weight, bias, eps)
    result = layernorm(x, weight, bias, eps)
    assert result.dtype == x.dtype
    assert_close(result, truth, NUMERICS, reduction=x.shape[-1])
    assert_unbiased(result, truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("rows", [1, 64, 1025])
def test_rows_of_the_indexers_k_norm(platform, rows, dtype):
    check(*inputs(platform, rows, K_NORM, dtype))


@pytest.mark.parametrize("size", [*ODD_SIZES, 1536, 4097, MAX_BLOCK, MAX_BLOCK + 1, 20001])
def test_any_hidden_size(platform, size):
    check(*inputs(platform, 3, size))


# Hidden sizes that sglang, vLLM, Liger and QuACK ask of their own layer norms: powers of two, and
# sizes beside them that no vector access divides.
@pytest.mark.parametrize(
    "size", [67, 192, 760, 768, 769, 770, 771, 1023, 1128, 5120, 5124, 5125, 5126, 8199, 16384]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_hidden_sizes_that_other_projects_ask_for(platform, size, dtype):
    check(*inputs(platform, 7, size, dtype))


@pytest.mark.parametrize("rows", [1030, 2047])
def test_a_last_block_that_is_not_full(platform, rows):
    check(*inputs(platform, rows, 65))


@pytest.mark.parametrize("size", [K_NORM, MAX_BLOCK + 1])
def test_the_variance_survives_a_large_mean(platform, size):
    x, weight, bias = inputs(platform, 4, size, torch.float16, offset=1000.0)
    check(x, weight, bias)


def test_a_constant_row_gives_the_bias(platform):
    x, weight, bias = inputs(platform, 3, K_NORM)
    x[:] = 3.0
    assert_bitwise(layernorm(x, weight, bias, EPS), bias.expand_as(x).contiguous())


def test_eps_counts_where_the_variance_is_small(platform):
    x, weight, bias = inputs(platform, 5, K_NORM)
    check(x * 2**-10, weight, bias)


@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_missing_parameter_is_not_applied(platform, with_weight, with_bias):
    x, weight, bias = inputs(platform, 5, K_NORM)
    check(x, weight if with_weight else None, bias if with_bias else None)


def test_a_nan_stays_in_its_row(platform):
    x, weight, bias = inputs(platform, 1030, K_NORM)
    x[7, 3] = torch.nan
    result = layernorm(x, weight, bias, EPS)
    assert result[7].isnan().all()
    assert not torch.cat([result[:7], result[8:]]).isnan().any()


@pytest.mark.parametrize("shape", [(K_NORM,), (2, 3, K_NORM), (2, 0, K_NORM), (0, K_NORM)])
def test_any_rank_and_no_rows(platform, shape):
    _, weight, bias = inputs(platform, 1, K_NORM)
    check(torch.randn(shape, device=platform.device).bfloat16(), weight, bias)


def test_no_rows_launch_nothing(platform, monkeypatch):
    monkeypatch.delattr(layernorm_kernel, "_layernorm_kernel")
    x, weight, bias = inputs(platform, 0, K_NORM)
    assert layernorm(x, weight, bias, EPS).shape == (0, K_NORM)


@pytest.mark.parametrize("gap", [1, 8])
def test_gaps_between_rows_are_not_read(platform, gap):
    x, weight, bias = inputs(platform, 9, K_NORM)
    result = layernorm(strided(x, gap), weight, bias, EPS)
    assert result.is_contiguous()
    assert_bitwise(result, layernorm(x, weight, bias, EPS))


def test_transposed_and_higher_rank_strides(platform):
    x, weight, bias = inputs(platform, 24, K_NORM)
    expected = layernorm(x, weight, bias, EPS)
    assert_bitwise(layernorm(x.T.contiguous().T, weight, bias, EPS), expected)
    cube = x.view(4, 6, K_NORM)
    turned = cube.transpose(0, 1).contiguous().transpose(0, 1)
    assert_bitwise(layernorm(turned, weight, bias, EPS), expected.view(4, 6, K_NORM))


@pytest.mark.parametrize("rows", [3, 1025])
def test_every_element_is_written_and_none_besides(platform, rows, monkeypatch):
    x, weight, bias = inputs(platform, rows, 65)
    allocated = []

    def empty(shape, dtype, device):
        allocated.append(poisoned((shape.numel() + 64,), dtype, device))
        return allocated[0][: shape.numel()].view(shape)

    monkeypatch.setattr(layernorm_kernel.torch, "empty", empty)
    result = layernorm(x, weight, bias, EPS)
    assert not result.isnan().any()
    assert allocated[0][result.numel() :].isnan().all()


def test_parameters_of_another_shape_are_refused_by_name(platform):
    x, weight, bias = inputs(platform, 3, K_NORM)
    with pytest.raises(ValueError, match="weight must be a contiguous"):
        layernorm(x, weight[:64], bias, EPS)
    with pytest.raises(ValueError, match="bias must be a contiguous"):
        layernorm(x, weight, bias.repeat_interleave(2)[::2], EPS)


def aiters_layernorm(platform):
    if platform.name == "rocm":
        from aiter import layernorm2d_fwd

        return layernorm2d_fwd
    return operators.install(platform)["aiter.layernorm2d_fwd"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_aiters_operator_rounds_where_the_slug_takes_it(platform, dtype):
    x, weight, bias = inputs(platform, 512, K_NORM, dtype)
    result = aiters_layernorm(platform)(x, weight, bias, EPS)
    truth = reference.layernorm(x, weight, bias, EPS)
    assert_close(result, truth, NUMERICS, reduction=K_NORM)
    if platform.ck_truncates_bf16 and dtype is torch.bfloat16:
        # Of an aiter that rounds here too, this fails: layernorm.py can then take it on gfx942.
        with pytest.raises(AssertionError, match=r"are -0\.[45]\d+ units in the last place"):
            assert_unbiased(result, truth)
    else:
        assert_unbiased(result, truth)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize(
    ("rows", "size", "loads"),
    [
        pytest.param(64, K_NORM, {16: 3}, id="k_norm decode"),
        pytest.param(8192, K_NORM, {16: 3}, id="k_norm prefill"),
        pytest.param(8192, 512, {16: 3}, id="hidden 512"),
        pytest.param(8192, 1024, {16: 3}, id="hidden 1024"),
        pytest.param(64, 4096, {16: 3}, id="hidden 4096"),
        pytest.param(8192, 8192, {16: 6}, id="hidden 8192"),
        pytest.param(64, 12288, None, id="hidden 12288"),
    ],
)
@pytest.mark.aot
def test_the_machine_code_reads_each_row_once_and_spills_nothing(arch, rows, size, loads):
    with believing(arch):
        parameters = launch_parameters(rows, size)
    num_warps = parameters.pop("num_warps")
    tensors = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "out_ptr"), "*bf16")
    code = aot.compile(
        layernorm_kernel.__name__,
        "_layernorm_kernel",
        signature=tensors | {"num_rows": "i32", "x_row_stride": "i32:16", "eps": "fp32"},
        constexprs={"N": size, **parameters},
        arch=arch,
        num_warps=num_warps,
        **layernorm_kernel.OPTIONS,
    )
    aot.assert_resources(code, vgprs=128)
    assert code.lds <= 64  # for sums of several waves; weight and bias go through none
    if loads is not None:  # x, weight, bias
        assert code.widths("load") == loads
