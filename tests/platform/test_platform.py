"""Catches a platform with another chip's numbers, stale inputs and a comparison that is blind."""

import subprocess
import sys

import pytest
import torch

from tests.platform import emulation, value
from tests.platform.tensors import boundaries, poisoned, strided
from tests.platform.trees import ROOT
from tests.platform.value import Platform, available
from tests.tolerances import assert_bitwise, assert_close


def test_a_platform_has_the_numbers_of_its_architecture(platform):
    assert platform.fp8_max == torch.finfo(platform.fp8_dtype).max
    assert platform.act_quant_max <= platform.fp8_max
    assert (platform.arch == "gfx942") == (platform.fp8_dtype == torch.float8_e4m3fnuz)


def test_an_nvidia_gpu_stands_for_gfx950_alone():
    assert available("cuda") == [Platform("cuda", "gfx950")]
    with pytest.raises(ValueError, match="not for gfx942"):
        available("cuda", "gfx942")


@pytest.mark.parametrize("name", ["cuda", "rocm"])
def test_an_interpreted_run_never_passes_for_one_on_a_gpu(monkeypatch, name):
    prepared = [
        lambda: value.prepare(name),
        lambda: emulation.environment(Platform(name, "gfx950"), "/tree"),
    ]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for prepare in prepared:
        with pytest.raises(ValueError, match=f"TRITON_INTERPRET=1 .* on platform {name} .* unset"):
            prepare()
    monkeypatch.delenv("TRITON_INTERPRET")
    for prepare in prepared:
        prepare()


@pytest.mark.xdist_group("one")
def test_pytest_xdist_keeps_groups_together(request):
    """With pytest 9.2.0 pytest-xdist 3.8.0 does not, and says nothing."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("one process runs all")
    assert request.node.nodeid.endswith("@one")


@pytest.mark.slow
def test_tests_are_collected_where_pytest_is_all_there_is():
    """bench/run.py asks no more of an image than pytest itself."""
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/modules/test_norm.py"]
    done = subprocess.run([*words, "-p", "no:xdist"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_poison_is_nan_or_a_wild_integer(platform):
    for dtype in (torch.float32, torch.bfloat16, platform.fp8_dtype):
        assert poisoned((3, 5), dtype, platform.device).float().isnan().all()
    assert (poisoned((3,), torch.int64, platform.device) == -(2**63)).all()


def test_a_strided_copy_has_the_values_and_poisoned_gaps():
    x = torch.randn(4, 7)
    view = strided(x)
    assert torch.equal(view, x)
    assert view.stride() == (10, 1)
    assert view.as_strided((4, 10), (10, 1))[:, 7:].isnan().all()


def test_boundaries_hold_every_value_and_every_tie(platform):
    edges = boundaries(platform.fp8_dtype, torch.bfloat16).double()
    assert platform.fp8_max in edges
    assert -platform.fp8_max in edges
    assert torch.inf in edges
    assert edges.numel() > 3 * 500


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_one_ulp_is_one_representable_value(dtype):
    truth = torch.linspace(-3, 3, 64, dtype=torch.float64).to(dtype).double()
    result = truth.to(dtype)
    assert_close(result, truth, "ulp<=0")
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
    off_by_one = (result.view(integer) + 1).view(dtype)
    assert_close(off_by_one, truth, "ulp<=1")
    with pytest.raises(AssertionError, match="64 of 64 values are not ulp<=0; the first at"):
        assert_close(off_by_one, truth, "ulp<=0")


def test_a_sum_may_err_by_what_an_fp32_sum_may_and_no_more():
    truth = torch.tensor([[1000.0, 1e-9]], dtype=torch.float64)
    result = torch.tensor([[1000.0, 2e-5]])
    assert_close(result, truth, "ulp<=1", reduction=4096)
    with pytest.raises(AssertionError, match=r"first at \[0, 1\]"):
        assert_close(result, truth, "ulp<=1")
    with pytest.raises(AssertionError):
        assert_close(result + 0.5, truth, "ulp<=1", reduction=4096)


@pytest.mark.parametrize("numerics", ["ulp<=2", "rel<=1e-2 vs fp64"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_poison_is_never_close(numerics, value):
    truth = torch.ones(2, 4, dtype=torch.float64)
    result = truth.bfloat16()
    result[1, 2] = value
    with pytest.raises(AssertionError, match=r"1 of 8 .* first at \[1, 2\]"):
        assert_close(result, truth, numerics)


def test_an_expected_nan_or_infinity_is_close_to_itself_alone():
    truth = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    assert_close(truth.float(), truth, "ulp<=0")
    with pytest.raises(AssertionError, match="3 of 3"):
        assert_close(torch.tensor([1.0, -torch.inf, 3e38]), truth, "ulp<=1")


def test_a_relative_bound_is_of_the_rows_largest():
    truth = torch.tensor([[1.0, 100.0], [1.0, 1.0]], dtype=torch.float64)
    assert_close(torch.tensor([[1.5, 100.0], [1.0, 1.0]]), truth, "rel<=1e-2 vs fp64")
    with pytest.raises(AssertionError, match=r"1 of 4 .* first at \[1, 0\]"):
        assert_close(torch.tensor([[1.0, 100.0], [1.5, 1.0]]), truth, "rel<=1e-2 vs fp64")


def test_bitwise_tells_zeros_apart_and_names_the_first_difference():
    with pytest.raises(
        AssertionError, match=r"k: 1 of 3 values are not bitwise; the first at \[1\]"
    ):
        assert_bitwise(torch.tensor([1.0, -0.0, 2.0]), torch.tensor([1.0, 0.0, 2.0]), "k")
    with pytest.raises(AssertionError, match=r"torch.float32, expected torch.bfloat16"):
        assert_bitwise(torch.ones(1), torch.ones(1, dtype=torch.bfloat16))


def test_random_numbers_are_fresh_for_each_test_and_follow_the_seed(seed):
    first = torch.randn(3)
    torch.manual_seed(seed)
    assert torch.equal(torch.randn(3), first)
