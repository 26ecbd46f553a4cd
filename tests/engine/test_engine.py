"""Catches what needs a server: chunks of a prefill, shared prefixes, ranks, the server's report."""

from dataclasses import dataclass, field

import pytest

from tests.engine import arms
from tests.engine.cases import AITER, SCALES, UNIFIED
from tests.engine.checkpoints import STEPS, Checkpoint, checkpoint, with_kv_scales
from tests.platform.trees import slugs

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Served:
    arch: str
    checkpoint: str
    server: dict = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] | None = None
    arms: tuple[str, ...] = ("pristine", "patched", "off")
    right: tuple[str, ...] = ("patched",)  # the arms that give the right tokens
    release: str = "0.5.10.post1"


# A chunk holds less than half a prompt.
CHUNKED = {"chunked_prefill_size": 16, "kv_cache_dtype": "fp8_e4m3"}
RANKS = {"SGLANG_TEST_GPUS": "2"}
SERVED = {
    "glm-5-two-ranks": Served(
        "gfx942", "glm-5", CHUNKED | {"tp_size": 2}, RANKS, arms=("patched",)
    ),
    "minimax-m2-two-ranks": Served(
        "gfx942", "minimax-m2", CHUNKED | AITER | {"tp_size": 2}, RANKS, arms=("patched",)
    ),
    "minimax-m2-scaled": Served("gfx950", "minimax-m2", CHUNKED | AITER, UNIFIED, SCALES),
}


# Two ranks of one model, two ranks of another: one of them each time.
LONG = {"minimax-m2-two-ranks": pytest.mark.long}


@pytest.fixture(params=[pytest.param(name, marks=LONG.get(name, ())) for name in SERVED])
def served(request, runs_here) -> Served:
    chosen = SERVED[request.param]
    runs_here([chosen.arch], chosen.release)
    return chosen


def model(served: Served) -> Checkpoint:
    if served.scales is None:
        return checkpoint(served.checkpoint)
    return with_kv_scales(served.checkpoint, **served.scales)


def result(served: Served, arm: str, platform) -> dict:
    prompts = [tokens[:-STEPS] for tokens in model(served).oracle["greedy"]]
    return arms.result(
        served.release,
        arm,
        platform,
        "engine:generate",
        served.environment,
        path=str(model(served).path),
        rounds=[prompts, prompts],
        steps=STEPS,
        server=served.server,
    )


def test_the_tokens_are_transformers_with_a_cold_and_a_warm_cache(served, platform):
    expected = [tokens[-STEPS:] for tokens in model(served).oracle["greedy"]]
    for arm in served.arms:
        found = result(served, arm, platform)
        cold, warm = found["cached"]
        assert cold == [0] * len(expected)
        assert all(cached >= 16 for cached in warm), f"{arm}: {warm} tokens were cached"
        right = [tokens == expected for tokens in found["tokens"]]
        assert right == [arm in served.right] * 2, f"{arm}: {found['tokens']}, not {expected}"


def test_switched_off_the_engine_is_upstreams_bit_for_bit(served, platform):
    if "off" not in served.arms:
        pytest.skip("served in the patched arm alone")
    pristine, off = (result(served, arm, platform) for arm in ("pristine", "off"))
    for what in ("tokens", "logprobs", "cached"):
        assert off[what] == pristine[what], what


def test_the_server_reports_what_is_active(served, platform):
    expected = {
        "patched": dict.fromkeys(slugs(served.release), "active"),
        "off": dict.fromkeys(slugs(served.release), "off: SGLANG_ROCM_PATCHES=0"),
    }
    for arm in served.arms:
        reported = result(served, arm, platform)["slugs"] or {}
        assert {slug: reported[slug]["state"] for slug in reported} == expected.get(arm, {})
