"""Settles what looked wrong in upstream and no slug is about: see docs/upstream-faults.md."""

from dataclasses import replace

import pytest
import torch

from tests.engine import arms
from tests.engine.cases import CASES, PAIRS, params
from tests.engine.checkpoints import checkpoint
from tests.engine.compare import distance, oracle
from tests.tolerances import LOGITS_FROM_TRANSFORMERS

pytestmark = pytest.mark.slow
# By aiter, then by Triton, then by one for prefill and the other for decode.
SHORT_OF_A_KEY = {name: CASES[name] for name in ("gpt-oss-bf16", "0.5.9-gpt-oss-bf16")} | {
    f"gpt-oss-bf16-{name}": replace(CASES["gpt-oss-bf16"], server=pair, long=True)
    for name, pair in PAIRS.items()
}


@pytest.mark.parametrize("name", params(SHORT_OF_A_KEY))
def test_gpt_oss_decodes_with_one_key_fewer_than_its_window_holds(name, platform, runs_here):
    case = SHORT_OF_A_KEY[name]
    runs_here(case.archs, case.release)
    model, bound = checkpoint(case.checkpoint), LOGITS_FROM_TRANSFORMERS[case.kv]
    published = case.result("pristine", platform)["logits"]
    wider = case.result("pristine", platform, wider_in_decode=1)["logits"]
    for forward, (found, mended) in enumerate(zip(published, wider, strict=True)):
        truth = oracle(model, forward)
        theirs, ours = (distance(x[:, : truth.shape[1]], truth) for x in (found, mended))
        assert (ours <= bound).all(), f"forward {forward}: {ours.tolist()} with one key more"
        if forward:
            # Of the prompts one fits into the window.
            assert (theirs > 2 * bound).sum() >= 2, f"forward {forward}: {theirs.tolist()}"


def test_eagles_draft_locations_are_right_where_masked_lanes_read_zero(release, platform):
    """The slots of one request follow those of the requests before it, whose lengths it sums."""
    lens, new = [5, 9, 2], [6, 4, 8]
    given = {"seq_lens": lens, "extend_lens": new, "page_size": 4, "topk": 2, "steps": 3}
    found = arms.result(release, "pristine", platform, "hardware:draft_cache_locs", {}, **given)
    expected, slot = torch.zeros_like(found["table"]), 1
    for row, start, count in zip(expected, lens, new, strict=True):
        row[start : start + count] = torch.arange(slot, slot + count)
        slot += count
    assert torch.equal(found["table"], expected)
