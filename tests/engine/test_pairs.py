"""Catches two backends of one server that disagree about the scales of their KV cache."""

import pytest

from tests.engine.cases import PAGED, PAIRS, SCALES, UNIFIED, WRITE, Case
from tests.engine.compare import from_transformers
from tests.tolerances import LOGITS_FROM_TRANSFORMERS

pytestmark = pytest.mark.slow
# With one that knows no scales in any release.
WITHOUT = {
    "torch_native-aiter": {
        "prefill_attention_backend": "torch_native",
        "decode_attention_backend": "aiter",
    },
    "aiter-torch_native": {
        "prefill_attention_backend": "aiter",
        "decode_attention_backend": "torch_native",
    },
}
SHORT = {("0.5.9", "triton-aiter"), ("0.5.10.post1", "torch_native-aiter")}


def cases():
    for release in ("0.5.9", "0.5.10.post1"):
        for name, server in (PAIRS | WITHOUT).items():
            case = Case("qwen3-moe", "fp8", WRITE, ("gfx942",), server, {}, SCALES, release=release)
            marks = () if (release, name) in SHORT else pytest.mark.long
            yield pytest.param(case, id=f"{release}-{name}", marks=marks)
    for name, server in PAIRS.items():
        case = Case("qwen3-moe", "fp8", WRITE, ("gfx942",), PAGED | server, UNIFIED, SCALES)
        yield pytest.param(case, id=f"0.5.10.post1-{name}-unified", marks=pytest.mark.long)


@pytest.mark.parametrize("case", cases())
def test_both_backends_of_a_server_agree_about_the_scales(case, platform, runs_here):
    runs_here(case.archs, case.release)
    bound = LOGITS_FROM_TRANSFORMERS[case.kv]
    for forward, found in enumerate(from_transformers(case, case.result("patched", platform))):
        assert (found <= bound).all(), f"forward {forward}: {found.tolist()}"
