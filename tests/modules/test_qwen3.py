"""Catches Qwen3-VL's fused store of decode, which knows no scales, beside readers that do."""

import pytest
import torch

from tests.modules.qwen3 import HEAD_DIM, HIDDEN, KV_HEADS
from tests.tolerances import ATTENTION, assert_bitwise, assert_near

SLUG = "fp8-kv-write"
SCENARIO = "tests.modules.qwen3:prefill_then_decode"
FUSED = "aiter.fused_qk_norm_mrope_3d_cache_pts_quant_shuffle"
SCALES = {"k_scale": 0.31, "v_scale": 0.043}


@pytest.fixture
def given(arms):
    if arms.release == "0.5.9":
        pytest.skip("0.5.9's Qwen3 stores through the attention backend alone")
    return {"hidden": torch.randn(9, HIDDEN).bfloat16(), "positions": torch.randint(0, 64, (3, 9))}


def stored(platform, result, scales):
    """K and V of all tokens, as a reader makes them of the cache."""
    found = []
    for name in ("k", "v"):
        rows = result.outputs[f"{name}_cache"].view(platform.fp8_dtype)
        rows = rows.view(-1, KV_HEADS, HEAD_DIM)[result.outputs["slots"]]
        found.append(rows.double() * scales.get(f"{name}_scale", 1.0))
    return found


def test_decode_stores_and_reads_with_the_scales(arms, platform, given):
    exact = arms.patched.run(SCENARIO, cache="bf16", **given)
    result = arms.patched.run(SCENARIO, cache="fp8", **SCALES, **given)
    assert FUSED in exact.operators
    assert FUSED not in result.operators
    values = (exact.outputs[f"{name}_cache"].view(torch.bfloat16) for name in ("k", "v"))
    for found, right in zip(stored(platform, result, SCALES), values, strict=True):
        rows = right.view(-1, KV_HEADS, HEAD_DIM)[result.outputs["slots"]].double()
        for phase in (slice(0, 8), slice(8, 9)):
            assert_near(found[phase], rows[phase], ATTENTION["fp8"])
    for phase in (slice(0, 8), slice(8, 9)):
        out, right = (each.outputs["out"][phase].double() for each in (result, exact))
        assert_near(out, right, ATTENTION["fp8"])


@pytest.mark.parametrize("scales", [{}, {"k_scale": 1.0, "v_scale": 1.0}], ids=str)
def test_without_scales_the_fused_store_stays(arms, given, scales):
    pristine, patched = (
        arm.run(SCENARIO, cache="fp8", **scales, **given) for arm in (arms.pristine, arms.patched)
    )
    assert FUSED in pristine.operators
    assert FUSED in patched.operators
    for name in ("k_cache", "v_cache"):
        assert_bitwise(patched.outputs[name], pristine.outputs[name], name)


def test_switched_off_it_is_upstreams(arms, off, given):
    expected, found = (arm.run(SCENARIO, cache="fp8", **given) for arm in (arms.pristine, off))
    for name, value in expected.outputs.items():
        assert_bitwise(found.outputs[name], value, name)
