"""Catches a run that is taken out, copied, changed or tried again in silence."""

import json
import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("scipy")

from ci.regression import ledger, runs
from ci.regression.alone import alone
from ci.regression.errors import Refused, RunFailed

KEY = {"model": "toy"}


@pytest.fixture
def work(tmp_path):
    """Two runs of both arms, whole, in a folder."""
    folder = tmp_path / "result"
    runs.begin(folder, KEY)
    for number in (1, 2):
        for arm in ("pristine", "patched"):
            make(folder, arm, number)
    return folder


def make(folder, arm, number):
    with runs.attempt(folder, arm, number):
        log = folder / f"{arm}-{number}.jsonl"
        log.write_text(f"{arm} {number}\n")
        runs.keep(folder, arm, number, {"log": log.name, "declined": [f"{arm} {number}"]})


def test_what_is_whole_is_kept_in_order_and_nothing_is_missing(work):
    make(work, "pristine", 10)
    found = runs.kept(work)
    assert [each["log"] for each in found["pristine"]] == [
        "pristine-1.jsonl", "pristine-2.jsonl", "pristine-10.jsonl",
    ]  # fmt: skip
    assert list(runs.missing(work, 2)) == []
    assert runs.declined(found) == ["patched 1", "patched 2"]  # of any run
    assert ledger.seal(work)["outcomes"] == {"begun": 5, "whole": 5}


def copy(work, one, other):
    for end in (".json", ".jsonl"):
        shutil.copy(work / (one + end), work / (other + end))


SPOILT = {
    "a log is deleted": (lambda w: (w / "patched-2.jsonl").unlink(), "patched-2.jsonl: No such"),
    "a run is deleted": (lambda w: (w / "patched-2.json").unlink(), "patched-2.json: No such"),
    "a log is changed": (
        lambda w: (w / "patched-2.jsonl").write_text("right"),
        "patched-2.jsonl is not what patched-2 wrote",
    ),
    "a run is copied over another": (
        lambda w: copy(w, "pristine-1", "patched-1"), "is not what patched-1 wrote",
    ),
    "a run is copied beside the others": (
        lambda w: copy(w, "patched-1", "patched-3"), "patched-3.json is of no run that",
    ),
    "the ledger is deleted": (
        lambda w: (w / ledger.NAME).unlink(), "pristine-1.json is of no run that",
    ),
    "a line of the ledger is deleted": (
        lambda w: lines(w, lambda all: all[:3] + all[4:]), "ledger.jsonl:4 does not follow",
    ),
    "a line of the ledger is changed": (
        lambda w: lines(w, lambda all: [line.replace("begun", "fresh") for line in all]),
        "ledger.jsonl:3 does not follow",
    ),
    "the ledger is cut off": (
        lambda w: (w / ledger.NAME).write_text((w / ledger.NAME).read_text()[:-9]),
        "ends in half a line",
    ),
    "the ledger is no text": (
        lambda w: (w / ledger.NAME).write_bytes(b"\xff"), "cannot be read",
    ),
    "the setting is torn": (lambda w: (w / "settings.json").write_text("{"), "settings.json: "),
    "the setting is a list": (lambda w: (w / "settings.json").write_text("[]"), "a list, not an"),
}  # fmt: skip


def lines(work, change):
    path = work / ledger.NAME
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize("name", SPOILT)
def test_a_folder_that_is_not_as_it_was_gives_no_verdict(name, work):
    spoil, sentence = SPOILT[name]
    spoil(work)
    with pytest.raises(Refused) as refusal:
        runs.begin(work, KEY)
    assert sentence in str(refusal.value)
    assert "another --output" in str(refusal.value) or "take the file away" in str(refusal.value)


def test_a_folder_begun_anew_beside_its_result_is_seen(work, tmp_path):
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"ledger": ledger.seal(work)}))
    runs.begin(work, KEY, result)
    make(work, "pristine", 3)
    runs.begin(work, KEY, result)  # it only went on
    shutil.rmtree(work)
    with pytest.raises(Refused, match="a result is never made again from other runs"):
        runs.begin(work, KEY, result)


def test_whatever_ended_an_attempt_is_told(work):
    for error in (KeyboardInterrupt(), RunFailed("died\nat once"), Refused("no"), OSError("full")):
        with pytest.raises(type(error)), runs.attempt(work, "patched", 3):
            raise error
    outcomes = [each["outcome"] for each in ledger.read(work) if each["run"] == "patched-3"]
    assert outcomes[1::2] == [
        "interrupted",
        "failed: died",
        "refused: no",
        "failed: OSError('full')",
    ]
    assert ledger.seal(work)["outcomes"] == {
        "begun": 8, "whole": 4, "interrupted": 1, "failed": 2, "refused": 1,
    }  # fmt: skip
    assert list(runs.missing(work, 3)) == [("pristine", 3), ("patched", 3)]


def test_a_run_killed_at_its_last_step_is_whole(work):
    """The ledger has it, the summary is not yet in its place."""
    summary = work / "patched-2.json"
    summary.rename(work / "patched-2.json.unfinished")
    runs.begin(work, KEY)
    assert len(runs.kept(work)["patched"]) == 2


def test_two_processes_never_share_an_output(tmp_path):
    output, work = tmp_path / "r.json", tmp_path / "r"
    program = (
        "import sys; from pathlib import Path\n"
        "from ci.regression.alone import alone\n"
        "with alone(Path(sys.argv[1]), Path(sys.argv[2])): pass\n"
    )

    def other(*paths):
        command = [sys.executable, "-c", program, *map(str, paths)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    with alone(output, work):
        for paths in ((output, work), (output, tmp_path / "s"), (tmp_path / "s.json", work)):
            said = other(*paths)
            assert f"process {os.getpid()} writes to" in said
        assert other(tmp_path / "s.json", tmp_path / "s") == ""
    assert other(output, work) == ""
