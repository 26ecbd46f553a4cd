"""Catches what needs a server: chunks of a prefill, shared prefixes, ranks, the server's report."""

from dataclasses import dataclass, field

import pytest

from tests.engine import arms
from tests.engine.cases import AITER, SCALES, UNIFIED, WINDOW, params
from tests.engine.checkpoints import STEPS, Checkpoint, checkpoint, with_kv_scales
from tests.platform.trees import slugs

pytestmark = pytest.mark.slow
ARMS = ("pristine", "patched", "off")


@dataclass(frozen=True)
class Served:
    arch: str
    checkpoint: str
    server: dict = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] | None = None
    arms: tuple[str, ...] = ARMS
    right: tuple[str, ...] = ("patched",)  # the arms that give the right tokens
    # What upstream gets wrong and no slug is about, so that its own tokens are the right ones.
    unmended_fault: str | None = None
    release: str = "0.5.10.post1"
    long: bool = False  # a minute by itself


# A chunk holds less than half a prompt.
CHUNKED = {"chunked_prefill_size": 16}
FP8 = {"kv_cache_dtype": "fp8_e4m3"}
RANKS = {"SGLANG_TEST_GPUS": "2"}
SERVED = {
    "glm-5-two-ranks": Served(
        "gfx942", "glm-5", CHUNKED | FP8 | {"tp_size": 2}, RANKS, arms=("patched",)
    ),
    "minimax-m2-scaled": Served("gfx950", "minimax-m2", CHUNKED | FP8 | AITER, UNIFIED, SCALES),
    "minimax-m2-two-ranks": Served(
        "gfx942", "minimax-m2", CHUNKED | FP8 | AITER | {"tp_size": 2}, RANKS, arms=("patched",),
        long=True,
    ),
    "glm-5": Served("gfx950", "glm-5", CHUNKED | FP8, right=ARMS, long=True),
    "gpt-oss-bf16": Served(
        "gfx942", "gpt-oss", CHUNKED | AITER, right=ARMS, unmended_fault=WINDOW, long=True
    ),
    "qwen3-moe-fp8": Served("gfx942", "qwen3-moe", CHUNKED | FP8 | AITER, right=ARMS, long=True),
    "0.5.9-qwen3-moe-bf16": Served(
        "gfx950", "qwen3-moe", CHUNKED | AITER, right=ARMS, release="0.5.9", long=True
    ),
}  # fmt: skip


@pytest.fixture(params=params(SERVED))
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
    if served.unmended_fault:
        expected, _ = result(served, "pristine", platform)["tokens"]
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
