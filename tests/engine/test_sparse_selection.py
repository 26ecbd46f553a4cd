"""Catches an indexer that selects other tokens: a head gate, an index key or slot that is wrong."""

from dataclasses import replace

import pytest

from tests.engine.cases import SPARSE, Case
from tests.engine.checkpoints import checkpoint
from tests.engine.compare import apart, assert_same_logits, distance, oracle
from tests.tolerances import (
    LOGITS_BETWEEN_ARMS,
    SELECTED_BETWEEN_ARMS,
    SELECTED_FROM_TRANSFORMERS,
)

pytestmark = [pytest.mark.long, pytest.mark.slow]
KEPT = 2048


def selections(result: dict) -> list[set[int]]:
    """For the only request, of every forward and layer."""
    return [set(layer[0].tolist()) for forward in result["selected"] for layer in forward]


def shared(one: set[int], other: set[int]) -> float:
    return len(one & other) / KEPT


@pytest.fixture
def case(release, runs_here) -> Case:
    runs_here(SPARSE[release].archs, release)
    return SPARSE[release]


@pytest.fixture
def results(case, platform) -> dict[str, dict]:
    # Where upstream refuses an FP8 cache, it selects as much over a bf16 one: of the index keys.
    upstream = replace(case, kv="bf16") if case.upstream_refuses else case
    return {
        "pristine": upstream.result("pristine", platform),
        "patched": case.result("patched", platform),
        "off": upstream.result("off", platform),
    }


@pytest.fixture
def wanted(case) -> list[set[int]]:
    layers = checkpoint(case.checkpoint).oracle["selected"][0]
    return [set(rows[forward].tolist()) for forward in range(len(layers[0])) for rows in layers]


def test_selection_really_drops_tokens(case, results):
    [length] = checkpoint(case.checkpoint).prompts
    for result in results.values():
        for forward, chosen in enumerate(selections(result)):
            assert len(chosen) == KEPT < length + forward
            assert max(chosen) < length + forward


def test_with_every_switch_off_selection_and_logits_are_upstreams_bit_for_bit(results):
    off, pristine = results["off"], results["pristine"]
    pairs = zip(selections(off), selections(pristine), strict=True)
    for forward, (ours, theirs) in enumerate(pairs):
        alone = sorted(ours ^ theirs)[:8]
        assert not alone, f"forward {forward}: the first positions that one has alone: {alone}"
    assert_same_logits(off, pristine)


def test_patched_selects_what_upstream_selects(results, wanted):
    pairs = zip(*(selections(results[arm]) for arm in ("patched", "pristine")), wanted, strict=True)
    for forward, (patched, pristine, oracles) in enumerate(pairs):
        common, theirs, ours = (
            shared(patched, pristine),
            shared(pristine, oracles),
            shared(patched, oracles),
        )
        apart = sorted(patched ^ pristine)[:8]
        where = (
            f"forward {forward}: with upstream {common}, with transformers {ours} and {theirs}; "
            f"the first positions that one of patched and pristine has alone: {apart}"
        )
        assert common >= SELECTED_BETWEEN_ARMS, where
        assert ours >= SELECTED_FROM_TRANSFORMERS, where
        assert ours >= theirs - (1 - SELECTED_BETWEEN_ARMS), where


def test_patched_logits_are_upstreams_and_as_close_to_transformers(case, results):
    patched, pristine = results["patched"]["logits"], results["pristine"]["logits"]
    assert not apart(patched, pristine, LOGITS_BETWEEN_ARMS["fp8"])
    for forward, (ours, theirs) in enumerate(zip(patched, pristine, strict=True)):
        truth = oracle(checkpoint(case.checkpoint), forward)
        gap = distance(ours, truth) - distance(theirs, truth)
        assert (gap <= LOGITS_BETWEEN_ARMS["fp8"]).all(), f"forward {forward}: {gap.tolist()}"
