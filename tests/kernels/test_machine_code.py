"""Catches a kernel that is unfit for an AMD GPU in some form that a real model selects."""

import dataclasses
import re

import pytest

from tests.kernels import aot, machine_code
from tests.kernels.addresses import narrow
from tests.platform.value import ARCHS

pytestmark = pytest.mark.aot

slugs = pytest.mark.parametrize("slug", machine_code.SLUGS)


@pytest.mark.parametrize("arch", ARCHS)
@slugs
def test_every_form_that_the_real_models_select_fits_the_chip(slug, arch):
    rows = aot.recorded("distinct", slug, arch)
    if aot.triton_folder:  # an image's Triton: the ranks that an image is mostly run on
        rows = [row for row in rows if any(call["tp"] == 8 for call in row["calls"])]
    assert rows
    told = [
        f"{machine_code.describe(row)}: {problem}"
        for row in rows
        for problem in machine_code.problems(aot.compile_request(row["launch"]), row)
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("arch", ARCHS)
@slugs
def test_addresses_hold_past_two_to_the_31st_element(slug, arch):
    for row in aot.recorded("past_31_bits", slug, arch):
        code = aot.compile_request(row["launch"])
        assert not narrow(code.ttir, row["integers"], row["grid"]), row["launch"]["kernel"]


def test_the_real_calls_launch_every_kernel_of_the_overlay():
    modules = (machine_code.ROOT / machine_code.keys.OVERLAY).glob("*.py")
    kernels = {
        name
        for path in modules
        for name in re.findall(r"^@triton\.jit.*\ndef (\w+_kernel)\(", path.read_text(), re.M)
    }
    launched = {
        row["launch"]["kernel"]
        for slug in machine_code.SLUGS
        # Some are for few tokens alone, and never past 2^31.
        for calls in ("past_31_bits", "distinct")
        for row in aot.recorded(calls, slug, "gfx942")
    }
    assert kernels == launched


def test_stores_with_scales_and_a_sliding_window_are_among_the_forms():
    for table in ("distinct", "past_31_bits"):
        stores = [
            row["launch"]["signature"] for row in aot.recorded(table, "rope-kv-store", "gfx942")
        ]
        forms = {("full_to_swa" in given, "k_scale" in given) for given in stores}
        assert forms == {(swa, scaled) for swa in (False, True) for scaled in (False, True)}
    rows = aot.recorded("distinct", "nsa-fp8-kv", "gfx942")
    turned = [row for row in rows if row["launch"]["kernel"] == "_rope_and_write_kernel"]
    q_types = {row["launch"]["signature"]["q_out"].partition(":")[0] for row in turned}
    assert q_types == {"*bf16", "*fp8e4b8"}


# The gate bites ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def row():
    """The FP8 write of gpt-oss' prefill: 16 bytes a lane, no branch."""
    rows = aot.recorded("distinct", "fp8-kv-write", "gfx942")
    many = [row for row in rows if row["calls"][-1]["tokens"] == machine_code.MANY_TOKENS]
    return next(row for row in many if row["launch"]["kernel"] == "_write_kv_kernel")


def told(row, code=None, **changes):
    code = code or aot.compile_request(row["launch"])
    return "; ".join(machine_code.problems(dataclasses.replace(code, **changes), row))


def with_signature(row, **kinds):
    launch = row["launch"]
    return row | {"launch": launch | {"signature": launch["signature"] | kinds}}


def test_a_fit_kernel_has_no_problems(row):
    assert told(row) == ""


def test_few_waves_scratch_and_software_conversion_are_told(row):
    assert "leave 2 waves a SIMD" in told(row, vgpr_count=200)
    assert "private_segment_fixed_size is 8" in told(row, private_segment_fixed_size=8)
    other_chips = with_signature(row, k_cache="*fp8e4nv:16", v_cache="*fp8e4nv:16")
    assert "e4m3 in software" in told(other_chips)


def test_rows_that_are_not_aligned_are_told(row):
    odd = with_signature(row, k_stride="i32", v_stride="i32", k="*bf16:2", v="*bf16:2")
    assert "loads of 8 bytes, 16 wanted" in told(odd)  # the slots


def test_a_branch_for_each_element_is_told(row):
    far = [name for name, kind in row["launch"]["signature"].items() if kind.startswith("*")]
    past_2_gib = row | {"launch": row["launch"] | {"far": far}}
    assert told(past_2_gib) == ""
    code = aot.compile(
        "tests.kernels.aot_example",
        "scale_to_fp8",
        signature={"x": "*bf16", "out": "*fp8", "scale": "fp32", "n": "i32"},  # ends anywhere
        constexprs={"BLOCK": 1024},
        arch="gfx942",
        far=["x", "out"],
        num_warps=1,
    )
    assert "branches" in told(row, code)


@pytest.mark.parametrize("wide", [True, False])
def test_an_offset_computed_in_32_bits_is_told(wide):
    code = aot.compile(
        "tests.kernels.aot_example",
        "copy_rows",
        signature={"x": "*bf16", "out": "*bf16", "x_stride": "i32:16", "out_stride": "i32:16"},
        constexprs={"WIDE": wide, "BLOCK": 128},
        arch="gfx942",
    )
    assert not narrow(code.ttir, {"x_stride": 128, "out_stride": 128}, (1 << 20,))
    faults = narrow(code.ttir, {"x_stride": 128, "out_stride": 16384}, (1 << 20,))
    assert len(faults) == (0 if wide else 1)
