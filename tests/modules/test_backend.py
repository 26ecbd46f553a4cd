"""Catches a KV scale dropped in one phase, and a patched backend that attends to something else."""

import pytest
import torch

from tests.modules.test_pools import assert_cache
from tests.tolerances import ATTENTION, assert_bitwise, assert_near

SLUG = "fp8-kv-write"

SCENARIO = "tests.modules.backend:extend_then_decode"
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64


@pytest.fixture
def batch():
    lengths = torch.tensor([5, 9, 3])
    tokens = int(lengths.sum()) + len(lengths)
    q = torch.randn(tokens, HEADS, HEAD_DIM).bfloat16()
    k, v = torch.randn(2, tokens, KV_HEADS, HEAD_DIM).bfloat16()
    return {"q": q, "k": k, "v": v, "lengths": lengths}


def attention(batch):
    """fp64 attention of the whole batch on the values as they are given."""
    lengths, rows, first = batch["lengths"].tolist(), {"extended": [], "decoded": []}, 0
    total = sum(lengths)
    for i, length in enumerate(lengths):
        mine = [*range(first, first + length), total + i]
        q, k, v = (batch[name][mine].double() for name in ("q", "k", "v"))
        k, v = (each.repeat_interleave(HEADS // KV_HEADS, 1) for each in (k, v))
        logits = torch.einsum("qhd,khd->hqk", q, k) * HEAD_DIM**-0.5
        future = torch.ones(length + 1, length + 1, dtype=torch.bool).triu(1)
        weights = logits.masked_fill(future, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        rows["extended"].append(out[:length])
        rows["decoded"].append(out[length:])
        first += length
    return {name: torch.cat(parts) for name, parts in rows.items()}


def assert_attends(result, batch, cache):
    for phase, truth in attention(batch).items():
        assert_near(result[phase].view(truth.shape), truth, ATTENTION[cache], phase)


@pytest.mark.parametrize("cache", ["bf16", "fp8"])
def test_both_phases_attend_to_all_that_came_before(either_arm, batch, cache):
    result = either_arm.run(SCENARIO, cache=cache, **batch).outputs
    assert_attends(result, batch, cache)


def test_a_bf16_cache_is_none_of_the_patchs_business(arms, batch):
    given = batch | {"cache": "bf16"}
    expected, result = (arm.run(SCENARIO, **given) for arm in (arms.pristine, arms.patched))
    for name, value in expected.outputs.items():
        assert_bitwise(result.outputs[name], value, name)
    assert result.launches == expected.launches


def test_scaled_caches_are_read_as_they_were_written(arms, batch):
    """Upstream drops the scales in decode: https://github.com/sgl-project/sglang/pull/26852."""
    given = batch | {"cache": "fp8", "k_scale": 0.7, "v_scale": 0.3}
    result = arms.patched.run(SCENARIO, **given).outputs
    assert_attends(result, batch, "fp8")


@pytest.mark.parametrize("scales", [(None, None), (0.7, 0.3)], ids=str)
def test_decode_stores_what_prefill_would(arms, platform, batch, scales):
    given = batch | {"cache": "fp8", "k_scale": scales[0], "v_scale": scales[1]}
    result = arms.patched.run(SCENARIO, **given)
    for name, scale in zip(("k", "v"), scales, strict=True):
        cache = result.outputs[f"{name}_cache"]
        values, slots = batch[name], result.outputs["slots"]
        assert_cache(platform, "fp8", cache, values, scale, slots, f"{name}_cache")


@pytest.mark.parametrize("cache", ["bf16", "fp8"])
def test_switched_off_backend_is_upstreams(arms, off, batch, cache):
    given = batch | {"cache": cache, "k_scale": 0.7, "v_scale": 0.3}
    expected = arms.pristine.run(SCENARIO, **given)
    result = off.run(SCENARIO, **given)
    for name, value in expected.outputs.items():
        assert_bitwise(result.outputs[name], value, name)
    assert result.launches == expected.launches
