"""Catches a patched model that is another model: through any slug, in prefill or in decode."""

import pytest
import torch

from tests.engine.cases import CASES, Case, params
from tests.engine.compare import apart, between_arms, culprits, from_transformers, parting
from tests.platform.trees import slugs
from tests.tolerances import LOGITS_BETWEEN_ARMS, LOGITS_FROM_TRANSFORMERS

pytestmark = pytest.mark.slow


@pytest.fixture(params=params(CASES))
def case(request, runs_here) -> Case:
    chosen = CASES[request.param]
    runs_here(chosen.archs, chosen.release)
    return chosen


def test_with_every_switch_off_the_logits_are_upstreams_bit_for_bit(case, platform):
    if case.upstream_refuses:
        for arm in ("pristine", "off"):
            with pytest.raises(Exception, match=case.upstream_refuses):
                case.result(arm, platform)
        return
    pristine, off = (case.result(arm, platform) for arm in ("pristine", "off"))
    states = {off["slugs"][slug]["state"] for slug in slugs(case.release)}
    assert states == {"off: SGLANG_ROCM_PATCHES=0"}
    assert off["launches"] == pristine["launches"]
    if not all(map(torch.equal, off["logits"], pristine["logits"])):
        pytest.fail(f"arm off: {parting(case, platform, ('off', 'pristine'), 0)}")


def test_patched_logits_are_upstreams(case, platform):
    if case.upstream_fault or case.upstream_refuses:
        pytest.skip(f"upstream is wrong here: {case.upstream_fault or case.upstream_refuses}")
    bound = between_arms(case, platform)
    pristine, patched = (case.result(arm, platform)["logits"] for arm in ("pristine", "patched"))
    if apart(patched, pristine, bound):
        pytest.fail(
            f"arm patched, slugs {', '.join(culprits(case, platform, bound)) or 'only together'}: "
            f"{parting(case, platform, ('patched', 'pristine'), bound)}"
        )


def test_patched_logits_are_transformers_and_no_farther_from_it_than_upstreams(case, platform):
    bound = LOGITS_FROM_TRANSFORMERS[case.kv]
    if case.upstream_refuses:
        for forward, found in enumerate(from_transformers(case, case.result("patched", platform))):
            assert (found <= bound).all(), f"forward {forward}: patched {found.tolist()}"
        return
    arms = (from_transformers(case, case.result(arm, platform)) for arm in ("pristine", "patched"))
    for forward, (theirs, found) in enumerate(zip(*arms, strict=True)):
        allowed = torch.full_like(found, bound)
        if case.unmended_fault and forward:
            allowed = theirs + LOGITS_BETWEEN_ARMS[case.kv]
        where = f"forward {forward}: patched {found.tolist()}, upstream {theirs.tolist()}"
        assert (found <= allowed).all(), f"{where}, allowed {allowed.tolist()}"
        assert (found <= theirs + LOGITS_BETWEEN_ARMS[case.kv]).all(), where
        if case.upstream_fault:
            assert (theirs > 2 * bound).any(), f"upstream is right after all; {where}"


@pytest.mark.long
def test_each_slug_alone_is_no_farther_from_transformers_than_upstream(case, platform):
    """Where upstream is right, or is wrong in what no slug is about."""
    if case.upstream_refuses:
        pytest.skip(f"upstream does not run: {case.upstream_refuses}")
    pristine = from_transformers(case, case.result("pristine", platform))
    for slug in case.slugs:
        alone = from_transformers(case, case.result(slug, platform))
        for forward, (theirs, found) in enumerate(zip(pristine, alone, strict=True)):
            allowed = theirs + LOGITS_BETWEEN_ARMS[case.kv]
            if case.upstream_fault:
                allowed[theirs > LOGITS_FROM_TRANSFORMERS[case.kv]] = torch.inf
            where = f"{slug} alone, forward {forward}: {found.tolist()}, upstream {theirs.tolist()}"
            assert (found <= allowed).all(), where


def test_patched_decode_of_a_whole_window_is_transformers(case, platform):
    """Where upstream's window lacks a key nothing else holds a patched decode to the truth."""
    if not case.unmended_fault:
        pytest.skip("upstream's window is right")
    bound = LOGITS_FROM_TRANSFORMERS[case.kv]
    whole = case.result("patched", platform, wider_in_decode=1)
    for forward, found in enumerate(from_transformers(case, whole)):
        assert (found <= bound).all(), f"forward {forward}: patched {found.tolist()}"


def test_every_slug_is_active_and_declines_nothing(case, platform):
    found = case.result("patched", platform)["slugs"]
    active = {"state": "active", "declined": []}
    applied = {slug: found[slug] for slug in slugs(case.release)}
    assert applied == dict.fromkeys(slugs(case.release), active)
