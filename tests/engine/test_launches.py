"""Catches a decode step that launches more than upstream's, and counts on record that are old."""

import json

import pytest

from tests.engine.cases import CASES, params
from tests.engine.launches import EVIDENCE, row

pytestmark = pytest.mark.slow


def key_of(row: dict) -> tuple[str, str]:
    return row["case"], row["arch"]


@pytest.mark.parametrize("name", params(CASES))
def test_a_decode_step_launches_what_is_on_record_and_no_more_than_upstreams(
    name, platform, runs_here
):
    runs_here(CASES[name].archs, CASES[name].release)
    if platform.name != "cpu":
        pytest.skip("counted on the CPU")
    found = row(name, platform.arch)
    [kept] = [r for r in json.loads(EVIDENCE.read_text())["rows"] if key_of(r) == key_of(found)]
    assert found == kept, f"not what {EVIDENCE.name} has: python3 -m tests.engine.launches"
    if not (CASES[name].upstream_fault or CASES[name].upstream_refuses):
        assert found["patched"] <= found["pristine"], found["changed"]
