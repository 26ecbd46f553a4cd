"""Catches: half of the suite that takes the other half's evidence away, or claims it for now."""

from types import SimpleNamespace

import pytest

from evidence import key as keys
from evidence import plugin, store

END_TO_END = "tests/regression/test_end_to_end.py::test_patches_that_are_right_pass[glm-5]@group"
DECIDE = "tests/regression/test_decide.py::test_equal_runs_pass"


@pytest.fixture
def ran(tmp_path):
    """The rows after a run of a selection in which these tests passed, by subject."""

    def run(selection, *passed, failed=0):
        cpu = [SimpleNamespace(name="cpu")]
        config = SimpleNamespace(platforms=cpu, option=SimpleNamespace(markexpr=selection))
        kept = plugin.Evidence(config, tmp_path)
        for nodeid in passed:
            report = {"nodeid": nodeid, "when": "call", "outcome": "passed", "skipped": False}
            kept.pytest_runtest_logreport(SimpleNamespace(**report))
        kept.pytest_sessionfinish(SimpleNamespace(testsfailed=failed))
        rows = store.read(tmp_path / "tests.cpu.jsonl").rows
        return {row["subject"]: (row["selection"], row["passed"]) for row in rows}

    return run


@pytest.mark.parametrize("first", ["long", "not long"])
def test_either_half_keeps_the_others_rows_and_renews_its_own(ran, first):
    halves = {"long": [END_TO_END], "not long": [DECIDE]}
    ran(first, *halves.pop(first))
    [(second, tests)] = halves.items()
    whole = {"end_to_end": ("long", 1), "decide": ("not long", 1)}
    assert ran(second, *tests) == whole
    assert ran(second, *tests, *tests) == whole | {
        subject: (selection, 2) for subject, (selection, _) in whole.items() if selection == second
    }


def test_rows_of_other_code_are_not_claimed_for_this(ran, monkeypatch):
    ran("not long", DECIDE)
    monkeypatch.setattr(keys, "of_tests", lambda: {"a definition": "changed"})
    assert ran("long", END_TO_END) == {"end_to_end": ("long", 1)}


@pytest.mark.parametrize("selection", ["", "not slow and not aot"])
def test_a_selection_that_is_no_half_stands_alone(ran, selection):
    ran("long", END_TO_END)
    assert ran(selection, DECIDE) == {"decide": (selection or "all", 1)}


def test_a_run_with_a_failure_changes_nothing(ran):
    ran("not long", DECIDE)
    assert ran("long", END_TO_END, failed=1) == {"decide": ("not long", 1)}
