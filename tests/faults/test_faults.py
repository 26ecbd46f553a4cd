"""Catches gates that no longer bite: a fault that cannot be put in, or that no test ever caught."""

import pytest

from evidence import store
from tests.faults.__main__ import EVIDENCE
from tests.faults.gates import judge
from tests.faults.table import FAULTS
from tests.platform.trees import patched_tree

# One a slug, caught in the cheapest layer: that the machinery itself works.
SAMPLE = [
    "the variance counts the lanes past the row",
    "240 for 224",
    "k_pe is cached as it was before the rotation",
    "K is cached as it was before the rotation",
    "the scale is applied twice",
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_to_be_changed_is_there_once(fault):
    text = (patched_tree(fault.release) / fault.file).read_text()
    assert fault.put_into(text) != text


def test_names_are_told_apart():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_evidence_has_every_fault_caught_as_it_is_now():
    rows = {row["fault"]: (row["caught"], row["change"]) for row in store.rows_of(EVIDENCE)}
    judged = [f for f in FAULTS if f.platform == "cpu" or f.name in rows]  # the rest wants a GPU
    lacking = [f.name for f in judged if rows.get(f.name) != (True, f.change)]
    if lacking:
        pytest.skip(f"not judged as it is now: {lacking}; python3 -m tests.faults NAME...")


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_fault_is_caught(name):
    [fault] = [fault for fault in FAULTS if fault.name == name]
    assert judge(fault, ["kernels"]).layer == "kernels"
