"""Catches an AOT check that overlooks spills, narrow accesses or too much LDS."""

import dataclasses

import pytest

from tests.kernels import aot

pytestmark = pytest.mark.aot

EXAMPLE = "tests.kernels.aot_example"


def scale_to_fp8(arch, **changes):
    signature = {"x": "*bf16", "out": "*fp8", "scale": "fp32", "n": "i32:16"}
    return aot.compile(
        EXAMPLE,
        "scale_to_fp8",
        signature=signature | changes,
        constexprs={"BLOCK": 1024},
        arch=arch,
        num_warps=1,
    )


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_the_machine_code_has_its_resources_and_its_conversion(arch):
    code = scale_to_fp8(arch)
    aot.assert_resources(code)
    assert 0 < code.vgpr_count < 128
    assert code.native_e4m3 == any("pk_fp8_f32" in name for name in code.instructions)
    assert code.widths("load") == {16: 2}
    assert code.widths("store") == {16: 1}


def test_rows_that_are_not_aligned_show_in_the_width():
    assert scale_to_fp8("gfx942", x="*bf16:2", n="i32").widths("load").keys() == {2}


def test_fp8_is_the_architectures_own():
    assert "v_cvt_pk_fp8_f32" not in scale_to_fp8("gfx942", out="*fp8e4nv").instructions
    with pytest.raises(aot.CompilationError, match="without a type"):
        aot.compile(EXAMPLE, "scale_to_fp8", signature={"x": "*bf16"}, arch="gfx942")


def test_lds_past_the_chips_limit_is_told():
    code = aot.compile(
        EXAMPLE,
        "large_dot",
        signature={"a": "*fp16", "b": "*fp16", "out": "*fp32"},
        constexprs={"M": 256, "K": 256},
        arch="gfx942",
        num_warps=8,
    )
    assert code.lds > 64 * 1024
    with pytest.raises(AssertionError, match=r"on gfx942: .*lds is \d+, at most 65536 allowed"):
        aot.assert_resources(code)
    assert dataclasses.replace(code, arch="gfx950").lds <= 160 * 1024


@pytest.mark.parametrize(
    "name", ["private_segment_fixed_size", "vgpr_spill_count", "sgpr_spill_count"]
)
def test_scratch_and_spills_are_told(name):
    code = dataclasses.replace(scale_to_fp8("gfx942"), **{name: 4})
    with pytest.raises(AssertionError, match=f"{name} is 4, at most 0"):
        aot.assert_resources(code)
