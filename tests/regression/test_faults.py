"""Catches a fault that cannot be put behind a server any more, or whose verdict nobody has kept."""

import pytest

from evidence import store
from tests.platform.trees import patched_tree
from tests.regression.__main__ import EVIDENCE
from tests.regression.served import FAULTS


@pytest.mark.parametrize("model", FAULTS)
def test_the_text_to_be_changed_is_there_once(model):
    for fault in FAULTS[model]:
        text = (patched_tree(fault.release) / fault.file).read_text()
        assert fault.put_into(text) != text


def test_the_evidence_has_every_fault_found_and_patches_that_are_right_pass():
    rows = store.rows_of(EVIDENCE)
    assert {(row["model"], row["fault"]): row["verdict"] for row in rows} == {
        (model, fault and fault.name): "REGRESSION" if fault else "PASS"
        for model, faults in FAULTS.items()
        for fault in (None, *faults)
    }
