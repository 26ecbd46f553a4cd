"""Catches what only a graph shows: values frozen at capture, buffers that replay leaves stale."""

import pytest

from tests.engine.cases import CASES, in_a_graph

pytestmark = pytest.mark.slow
REPLAYED = [
    "glm-5-fp8",
    "qwen3-moe-fp8-scaled",
    "minimax-m2-fp8-scaled-unified",
    "0.5.9-minimax-m2-fp8-scaled",
]


@pytest.fixture(params=REPLAYED)
def eager(request, runs_here):
    case = CASES[request.param]
    runs_here(case.archs[-1:], case.release)
    return case


def test_replayed_decode_has_the_eager_bits(eager, platform):
    replayed = in_a_graph(eager).result("patched", platform)["logits"]
    for forward, (ours, expected) in enumerate(
        zip(replayed, eager.result("patched", platform)["logits"], strict=True)
    ):
        different = (ours != expected).nonzero().tolist()
        assert not different, (
            f"forward {forward} at {different[0]}: replayed {ours[tuple(different[0])].item()!r}, "
            f"eager {expected[tuple(different[0])].item()!r}"
        )
