"""Catches rope on the wrong half or twice, and a fused store with another slot, scale or layout."""

import pytest
import torch

from tests.modules.pools import SLOTS
from tests.modules.test_pools import assert_cache
from tests.tolerances import BF16_STEPS, ONE_ULP, assert_bitwise, assert_close

SLUG = "rope-kv-store"

TOKENS, HEADS, KV_HEADS = 6, 8, 2


def rotated(x, positions, table, rotary_dim, neox):
    """The fp64 truth, with the table that the arm used."""
    cos, sin = table[positions].double()[:, None].chunk(2, -1)
    part, rest = x.double()[..., :rotary_dim], x.double()[..., rotary_dim:]
    if neox:
        first, second = part.chunk(2, -1)
    else:
        first, second = part[..., ::2], part[..., 1::2]
    pair = (first * cos - second * sin, second * cos + first * sin)
    part = torch.cat(pair, -1) if neox else torch.stack(pair, -1).flatten(-2)
    return torch.cat([part, rest], -1)


def inputs(head_dim):
    q, k = torch.randn(TOKENS, HEADS * head_dim), torch.randn(TOKENS, KV_HEADS * head_dim)
    positions = torch.randint(0, 256, (TOKENS,))
    return {"positions": positions, "q": q.bfloat16(), "k": k.bfloat16()}


def heads_of(flat, head_dim):
    return flat.reshape(TOKENS, -1, head_dim)


@pytest.mark.parametrize("neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (128, 64), (80, 32)])
def test_rope_turns_the_rotary_part_and_leaves_the_rest(either_arm, head_dim, rotary_dim, neox):
    given = inputs(head_dim)
    result = either_arm.run(
        "tests.modules.rope:rotate", **given, head_dim=head_dim, rotary_dim=rotary_dim, neox=neox
    ).outputs
    for name in ("q", "k"):
        x = heads_of(given[name], head_dim)
        truth = rotated(x, given["positions"], result["table"], rotary_dim, neox)
        assert_close(heads_of(result[name], head_dim), truth, ONE_ULP, reduction=2, name=name)


def fused_inputs(kind, cache, neox, scales, head_dim=64):
    return inputs(head_dim) | {
        "v": torch.randn(TOKENS, KV_HEADS, head_dim).bfloat16(),
        "slots": torch.randperm(SLOTS)[:TOKENS] + 1,
        "heads": HEADS,
        "kind": kind,
        "cache": cache,
        "neox": neox,
        "k_scale": scales[0],
        "v_scale": scales[1],
    }


def stored_scales(arms, scales):
    """0.5.9's triton backend, as which the scenario counts, neither stores nor reads with any."""
    return (None, None) if arms.release == "0.5.9" else scales


FUSED = [
    pytest.param(kind, cache, neox, scales, id=f"{kind}-{cache}-{style}-{scales[0]}")
    for kind in ("mha", "swa")
    for cache, scales in (("bf16", (None, None)), ("fp8", (None, None)), ("fp8", (0.7, 0.3)))
    for neox, style in ((True, "neox"), (False, "interleaved"))
]


@pytest.mark.parametrize(("kind", "cache", "neox", "scales"), FUSED)
def test_rope_with_its_store_writes_what_it_returns(
    arms, either_arm, platform, kind, cache, neox, scales
):
    given = fused_inputs(kind, cache, neox, scales)
    result = either_arm.run("tests.modules.rope:rotate_and_store", **given).outputs
    if arms.release == "0.5.9" and either_arm is arms.pristine:
        assert not result["fused"]  # on HIP it stores in attention
        return
    assert result["fused"]
    scales = stored_scales(arms, scales)
    for name in ("q", "k"):
        truth = rotated(heads_of(given[name], 64), given["positions"], result["table"], 64, neox)
        assert_close(heads_of(result[name], 64), truth, BF16_STEPS, name=name)
    slots = SLOTS - given["slots"] if kind == "swa" else given["slots"]
    for name, values, scale in (
        ("k", heads_of(result["k"], 64), scales[0]),
        ("v", given["v"], scales[1]),
    ):
        assert_cache(
            platform, cache, result[f"{name}_cache"], values, scale, slots, f"{name}_cache"
        )


@pytest.mark.parametrize("scales", [(None, None), (0.7, 0.3)], ids=str)
def test_the_fused_store_saturates(arms, platform, scales):
    given = fused_inputs("mha", "fp8", True, scales)
    given["k"], given["v"] = given["k"] * 150, given["v"] * 150
    result = arms.patched.run("tests.modules.rope:rotate_and_store", **given).outputs
    k, slots = heads_of(result["k"], 64), given["slots"]
    scales = stored_scales(arms, scales)
    assert_cache(platform, "fp8", result["k_cache"], k, scales[0], slots, "k_cache")
    assert_cache(platform, "fp8", result["v_cache"], given["v"], scales[1], slots, "v_cache")


@pytest.mark.parametrize(("kind", "cache", "neox", "scales"), FUSED[::3])
def test_switched_off_rope_is_upstreams(arms, off, kind, cache, neox, scales):
    given = fused_inputs(kind, cache, neox, scales)
    expected = arms.pristine.run("tests.modules.rope:rotate_and_store", **given)
    result = off.run("tests.modules.rope:rotate_and_store", **given)
    for name in ("q", "k", "k_cache", "v_cache"):
        assert_bitwise(result.outputs[name], expected.outputs[name], name)
    if off is arms.off:  # alone, it leaves 0.5.9's store to fp8-kv-write
        assert result.launches == expected.launches


def test_rope_and_its_store_are_one_launch(arms):
    given = fused_inputs("swa", "fp8", True, (0.7, 0.3))
    result = arms.patched.run("tests.modules.rope:rotate_and_store", **given)
    assert sum(result.kernels.values()) == 1
    assert not result.operators
