"""Catches a family's verdict that one of many gives by chance, or that counts a result twice."""

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("scipy")

from ci.regression import accuracy_cli, decide, family, simulate
from ci.regression.decide import Rule
from ci.regression.errors import Refused
from ci.regression.starts import pooled
from tests.regression.drawn import run, runs

CLEAN = ((), ())


def result(pristine=CLEAN, patched=CLEAN, rule=None, **beside):
    said = decide.decide(runs(*pristine), runs(*patched), rule or Rule()).as_json()
    return json.loads(json.dumps(said)) | beside


def folder(name):
    return {"ledger": {"folder": name, "entries": 1, "head": "x"}}


def test_one_of_many_configurations_has_to_stand_after_holm():
    """13 lost for good at the first look: enough for one comparison, not for one of three."""
    bad, good = result(patched=[range(13)] * 2), result()
    assert family.combine({"a": bad}).verdict == "REGRESSION"
    found = family.combine({"a": bad, "b": good, "c": good})
    assert found.verdict == "INCONCLUSIVE"
    rows = found.statistics["configurations"]
    assert rows["a"]["p_holm"] == pytest.approx(3 * rows["a"]["p"])
    assert "Of so many configurations chance gives such a one" in found.reasons[0]
    assert "Go on with the same commands" in found.message
    assert found.further_runs == 2
    assert family.combine({"b": good, "c": good}).verdict == "PASS"
    worse = result(patched=[range(25)] * 2)
    assert family.combine({"a": worse, "b": good, "c": good}).verdict == "REGRESSION"


def test_what_stands_after_holm_is_a_regression_though_its_own_job_did_not_say_so():
    """A job that was told of a larger family than there is."""
    bad = result(patched=[range(14)] * 2, rule=Rule(family=1000))
    assert bad["verdict"] == "INCONCLUSIVE"
    assert family.combine({"a": bad}).verdict == "REGRESSION"


def test_answers_that_are_cut_off_stand_after_holm_too():
    """A REGRESSION by its rate alone is none that Holm over the losses may take back."""
    column = [{str(doc): doc < cut for doc in range(1319)} for cut in (0, 60)]
    arms = [[run("", range(400), truncated=each) for _ in range(2)] for each in column]
    bad = json.loads(json.dumps(decide.decide(*arms).as_json()))
    assert bad["verdict"] == "REGRESSION"
    found = family.combine({"a": bad, **{f"job {i}": result() for i in range(37)}})
    assert found.verdict == "REGRESSION"


def test_starts_that_shift_in_all_of_them_take_back_what_two_runs_cannot_hold():
    """Each has too few runs to see it; together they have ten."""
    shaken = [result((range(10 * i % 30), range(40 - 10 * i % 30)), ((), ())) for i in range(10)]
    assert Counter(each["verdict"] for each in shaken)["PASS"] >= 3
    found = family.combine({f"job {i}": each for i, each in enumerate(shaken)})
    assert found.verdict == "INCONCLUSIVE"
    assert found.statistics["start_noise_seen"]
    assert "--start-noise" in found.message
    assert "With what the starts of all configurations shift" in str(found.reasons)


@pytest.mark.parametrize("identity", [folder("f"), {"logs": {"a": "1", "b": "2"}}], ids=str)
def test_one_result_under_two_names_is_refused(identity):
    one, other = result(**identity), result(patched=((1,), (2,)), **identity)
    with pytest.raises(Refused, match="b and a are made of the same runs"):
        family.combine({"a": one, "b": other})


def test_two_patch_sets_of_one_release_are_refused():
    def of(release, digest, name):
        return result(configuration={"release": release, "digest": digest}, **folder(name))

    with pytest.raises(Refused, match="b is of patch set 222, a of 111, both for 0"):
        family.combine({"a": of("0.5.9", "111", "f"), "b": of("0.5.9", "222", "g")})
    both = {"a": of("0.5.9", "111", "f"), "b": of("0.5.10", "222", "g")}
    assert family.combine(both).verdict == "PASS"


SPOILT = {
    "no statistics": lambda r: r.pop("statistics"),
    "no looks": lambda r: r["statistics"].pop("looks"),
    "a look of words": lambda r: r["statistics"]["looks"].__setitem__(0, "two"),
    "a look after three": lambda r: r["statistics"]["looks"][0].update(runs=3),
    "a look twice": lambda r: r["statistics"]["looks"].append(r["statistics"]["looks"][0]),
    "a PASS of nothing": lambda r: r["statistics"].update(looks=[]),
    "half a question": lambda r: r["statistics"]["looks"][0].update(differences={"0": 0.5}),
    "no question": lambda r: r["statistics"]["looks"][0].update(differences={}),
    "a fall by five of two": lambda r: r["statistics"]["looks"][0].update(differences={"-5": 9}),
    "starts below zero": lambda r: r["statistics"]["looks"][0]["starts"].update(between=-1),
    "starts in words": lambda r: r["statistics"]["looks"][0]["starts"].update(freedom="1"),
    "an unknown rate": lambda r: r["statistics"]["looks"][0].update(rates={"slow": {"0": 1}}),
    "a margin in words": lambda r: r["statistics"].update(margin="1"),
    "another verdict": lambda r: r.update(verdict="GREEN"),
    "a message of numbers": lambda r: r.update(message=7),
    "runs in words": lambda r: r.update(further_runs="2"),
    "a ledger of words": lambda r: r.update(ledger="f"),
    "a configuration of words": lambda r: r.update(configuration="glm-5"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_result_that_no_command_writes_is_refused_in_a_sentence(name, tmp_path, capsys):
    spoilt = result()
    SPOILT[name](spoilt)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(spoilt))
    assert accuracy_cli.main(["combine", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{path}: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"PASS"', "\ud800"])
def test_a_file_that_is_torn_or_no_object_is_refused(text, tmp_path, capsys):
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert accuracy_cli.main(["combine", str(path)]) == 2
    assert f"{path}: " in capsys.readouterr().err
    assert accuracy_cli.main(["combine", str(tmp_path / "none.json")]) == 2
    assert "No such file or directory; give what `run --output`" in capsys.readouterr().err


def test_a_result_that_is_given_twice_is_refused(tmp_path, capsys):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(result()))
    assert accuracy_cli.main(["combine", str(path), str(path)]) == 2
    assert "given twice" in capsys.readouterr().err


def test_a_result_survives_its_file():
    """What `combine` judges is what `decide` judged."""
    arms = runs({1, 2}, range(30)), runs(range(4), range(20))
    said = decide.decide(*arms)
    [judged] = family.judge(
        {0: family._member("r", json.loads(json.dumps(said.as_json())))}
    ).values()
    assert judged.p == pytest.approx(said.statistics["p"])


# The simulation -----------------------------------------------------------------------------------


def test_clean_families_pass_and_a_point_in_one_job_of_them_is_found():
    """A few families of the table in docs/accuracy.md, by the functions that judge real runs."""
    _, _, alarms, found, passed, clear, runs_a_job = simulate.row(simulate.World(0.02), 8)
    assert (alarms, passed) == ("0.0%", "0.0%")
    assert float(found[:-1]) >= 80
    assert float(clear[:-1]) >= 80
    assert 4 <= float(runs_a_job) < 8


def test_what_is_drawn_has_the_noise_and_the_loss_that_the_table_names():
    numbers = np.random.default_rng(0)
    job = simulate.drawn(numbers, simulate.World(0.05), lost=13)
    look = job.look(12)
    assert look.answers.questions == 1319
    assert look.answers.counts[-12] == 13
    pristine = job.right[0]
    assert np.mean(pristine[0] != pristine[1]) * pristine.shape[1] / 1319 == pytest.approx(
        0.05, abs=0.012
    )
    shifted = [
        simulate.drawn(numbers, simulate.World(0.05, 0.5)).look(12).starts for _ in range(20)
    ]
    assert pooled(shifted).deviation == pytest.approx(0.005, rel=0.2)
