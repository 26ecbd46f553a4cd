"""Catches a log that is misread, a refusal without its reason, a wrong exit code."""

import argparse
import json
import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("scipy")

from ci.regression import accuracy_cli, commands, comparison, evidence, runs, throughput_cli
from ci.regression.errors import Refused
from tests.platform.trees import ROOT
from tools import evidence as page

GOOD = "".join(json.dumps({"doc_id": doc, "correct": doc > 20}) + "\n" for doc in range(400))


@pytest.fixture
def log(tmp_path):
    def write(name, text=GOOD):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def decide(capsys, pristine, patched, *further):
    arguments = ["decide", "--json", "--margin", "2", *further]  # what 400 questions can exclude
    for arm, paths in (("--pristine", pristine), ("--patched", patched)):
        for path in paths:
            arguments += [arm, path]
    code = accuracy_cli.main(arguments)
    return code, json.loads(capsys.readouterr().out)


def test_saved_logs_alone_give_the_verdict(capsys, log):
    code, found = decide(capsys, [log("a"), log("b")], [log("c"), log("d")])
    assert (code, found["verdict"]) == (0, "PASS")


@pytest.mark.parametrize("twice", ["pristine", "patched", "both"])
def test_a_log_that_is_given_twice_is_refused_by_whatever_name(twice, capsys, log, tmp_path):
    arms = {"pristine": [log("a"), log("b")], "patched": [log("c"), log("d")]}
    link = tmp_path / "link.jsonl"
    link.symlink_to("c.jsonl" if twice == "patched" else "a.jsonl")
    arms["pristine" if twice == "pristine" else "patched"][1] = str(link)
    code, found = decide(capsys, *arms.values())
    assert (code, found["verdict"]) == (2, "REFUSED")
    assert f"{link} is the same file as {link.resolve()}" in found["message"]


def test_a_regression_exits_with_1(capsys, log):
    worse = [log(name, GOOD.replace("true", "false", 60)) for name in "cd"]
    code, found = decide(capsys, [log("a"), log("b")], worse)
    assert (code, found["verdict"]) == (1, "REGRESSION")


def test_an_open_question_exits_with_3_and_says_how_many_runs_settle_it(capsys, log):
    code, found = decide(capsys, [log("a")], [log("b")])
    assert (code, found["verdict"], found["further_runs"]) == (3, "INCONCLUSIVE", 1)


def test_numbers_texts_and_order_name_the_same_questions(capsys, log):
    rows = [json.loads(line) for line in GOOD.splitlines()]
    other = [{"doc_id": str(r["doc_id"]), "correct": int(r["correct"])} for r in reversed(rows)]
    text = "\n\n".join(json.dumps(row) for row in other)
    code, found = decide(capsys, [log("a"), log("b", text)], [log("c", text), log("d")])
    assert code == 0
    assert found["statistics"]["flips"] == {"pristine_pristine": 0, "patched_pristine": 0}


REFUSED = {
    "empty": ("", "holds no question"),
    "blank": ("\n \n", "holds no question"),
    "cut off": (GOOD[:-5], ":400: no JSON"),
    "not an object": (GOOD + "[1]\n", ":401: not a JSON object"),
    "a question twice": (GOOD + GOOD.splitlines()[7], ":401: question 7 is there twice"),
    "no id": (GOOD.replace('"doc_id": 3,', '"id": 3,', 1), ":4: `doc_id` is null"),
    "an id that is a truth": (GOOD.replace('"doc_id": 3,', '"doc_id": true,', 1), ":4: `doc_id`"),
    "no answer": (GOOD.replace(', "correct": false', "", 1), ":1: `correct` is null"),
    "an answer in words": (GOOD.replace("false", '"yes"', 1), ':1: `correct` is "yes"'),
    "half an answer": (GOOD.replace("false", "0.5", 1), ":1: `correct` is 0.5"),
    "a question less": ("".join(GOOD.splitlines(keepends=True)[:-1]), "1 only in"),
    "a failed request": (
        GOOD.replace("false}", 'false, "error": "ConnectionReset"}', 1),
        "that is no wrong answer",
    ),
    "no text": (b"\xff\xfe\x00", "cannot be read"),
    "no end of brackets": ("[" * 100_000, ":1: no JSON"),
    "a number without end": (
        GOOD.replace("false", "1" * 5000, 1),
        ":1: no JSON: Exceeds the limit",
    ),
    "an aborted request": (
        GOOD.replace("false}", 'false, "finish_reason": "abort"}', 1),
        ':1: question 0 ended by "abort", not by stop or length',
    ),
    "an end that some tell": (
        GOOD.replace("false}", 'false, "finish_reason": "stop"}', 2),
        "398 of 400 questions are without `finish_reason` (10, 100, 101, ...)",
    ),
    "an invalid answer that some tell": (
        GOOD.replace("false}", 'false, "invalid": true}', 1),
        "399 of 400 questions are without `invalid`",
    ),
}


def test_ends_of_lines_inside_a_text_are_no_ends_of_rows(capsys, log):
    text = GOOD.replace("false}", 'false, "text": "one\u2028two\u0085three"}')
    code, found = decide(capsys, [log("a", text), log("b", text)], [log("c"), log("d")])
    assert (code, found["statistics"]["questions"]) == (0, 400)


def test_a_mark_at_the_beginning_of_a_file_is_no_text(capsys, log):
    marked = GOOD.encode("utf-8-sig")
    assert decide(capsys, [log("a", marked), log("b")], [log("c"), log("d", marked)])[0] == 0


def test_a_finish_reason_of_null_is_none(capsys, log):
    text = GOOD.replace("}", ', "finish_reason": null}')
    code, found = decide(capsys, [log("a", text), log("b", text)], [log("c"), log("d")])
    assert code == 0
    assert "truncated answers were not compared" in found["message"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_log_that_is_not_whole_is_refused_with_its_place(capsys, log, name):
    text, reason = REFUSED[name]
    bad = log("bad", text)
    for pristine, patched in (([bad, log("a")], [log("b")]), ([log("a")], [log("b"), bad])):
        code, found = decide(capsys, pristine, patched)
        assert (code, found["verdict"]) == (2, "REFUSED")
        assert reason in found["message"]


def test_a_log_that_is_not_there_is_refused(capsys, log, tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        code, found = decide(capsys, [str(path)], [log("a")])
        assert (code, found["verdict"]) == (2, "REFUSED")
        assert "give the log of one run, as FOLDER/pristine-1.jsonl" in found["message"]


def test_an_arm_without_a_log_is_wrong_usage(log):
    with pytest.raises(SystemExit) as ended:
        accuracy_cli.main(["decide", "--pristine", log("a")])
    assert ended.value.code == 2


def test_deciding_needs_scipy_and_neither_torch_nor_lm_eval(log):
    code = (
        "import sys\n"
        "for name in ('torch', 'lm_eval', 'transformers', 'datasets', 'sglang', 'tqdm'):\n"
        "    sys.modules[name] = None\n"
        "from ci.regression.accuracy_cli import main\n"
        f"sys.exit(main(['decide', '--pristine', {log('a')!r}, '--patched', {log('b')!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "INCONCLUSIVE" in done.stdout


DIFFERENT = {
    "prompt_hash": ("a1", "b2"),
    "target": ("7", "8"),
    "model": ("GLM-5-FP8", "GLM-5"),
}


@pytest.mark.parametrize("key", DIFFERENT)
def test_logs_of_other_prompts_targets_or_models_are_refused(key, capsys, log):
    one, other = (
        GOOD.replace("}", f', "{key}": {json.dumps(value)}}}') for value in DIFFERENT[key]
    )
    last = GOOD.splitlines(keepends=True)[-1]
    changed = one.replace(one.splitlines(keepends=True)[-1], other.splitlines(keepends=True)[-1])
    assert last not in one
    pristine = [log("a", one), log("b", one)]
    assert decide(capsys, pristine, [log("c", one), log("d", one)])[0] == 0
    for arms in ((pristine, [log("c", one), log("d", changed)]), ([log("e", changed)], pristine)):
        code, found = decide(capsys, *arms)
        assert (code, found["verdict"]) == (2, "REFUSED")
        assert f"differ in `{key}` of 1 questions (399: " in found["message"]


def test_a_log_in_another_order_is_paired_by_its_ids_and_its_ends_are_read(capsys, log):
    """One log alone is turned round, and one answer of ten is cut off in the patched arm."""

    def marked(cut):
        rows = [json.loads(line) for line in GOOD.splitlines()]
        for number, row in enumerate(rows):
            row["finish_reason"] = "length" if number % 10 < cut else "stop"
        return [json.dumps(row) for row in rows]

    whole, cut = marked(0), marked(1)
    arms = [log("a", "\n".join(whole)), log("b", "\n".join(whole))]
    turned = [log("c", "\n".join(whole[::-1])), log("d", "\n".join(whole))]
    code, found = decide(capsys, arms, turned)
    assert (code, found["statistics"]["losses"]) == (0, 0)
    code, found = decide(capsys, arms, [log("e", "\n".join(cut)), log("f", "\n".join(cut))])
    assert (code, found["verdict"]) == (1, "REGRESSION")
    assert found["statistics"]["truncated"] == {"pristine": 0, "patched": 0.1, "p": 2.0**-40}


def test_what_decide_says_can_be_combined_once(capsys, log, tmp_path):
    _, found = decide(capsys, [log("a"), log("b")], [log("c"), log("d")])
    result = tmp_path / "one.json"
    result.write_text(json.dumps(found))
    assert accuracy_cli.main(["combine", str(result), "--json"]) == 0
    capsys.readouterr()
    again = tmp_path / "two.json"
    again.write_text(json.dumps(found))
    assert accuracy_cli.main(["combine", str(result), str(again)]) == 2
    assert "are made of the same runs" in capsys.readouterr().err


def test_what_further_runs_cannot_settle_alone_they_cannot_in_company(capsys, log, tmp_path):
    results = []
    for name, questions in (("few", 100), ("many", 400)):
        text = "".join(GOOD.splitlines(keepends=True)[-questions:])
        logs = [log(f"{name} {number}", text) for number in range(4)]
        _, found = decide(capsys, logs[:1] if name == "many" else logs[:2], logs[2:])
        results.append(tmp_path / f"{name}.json")
        results[-1].write_text(json.dumps(found))
    assert accuracy_cli.main(["combine", str(results[1]), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["further_runs"] == 1
    assert accuracy_cli.main(["combine", *map(str, results), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["further_runs"] is None


@pytest.mark.parametrize("command", ["accuracy_cli", "throughput_cli"])
def test_a_package_that_is_not_there_is_named_with_what_installs_it(command):
    given = {
        "accuracy_cli": ["power"],
        "throughput_cli": ["run", "--preset", "deepseek-v3.2", "--release", "0.5.9"],
    }[command]
    code = (
        "import sys\n"
        "sys.modules['scipy'] = None\n"
        f"from ci.regression.{command} import main\n"
        f"sys.exit(main({given}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "has no scipy" in done.stderr
    assert "ci/requirements-accuracy.txt" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_the_program_is_no_regression(capsys):
    def does():
        raise ZeroDivisionError("a fault")

    assert commands.answered("gsm8k", does) == 4
    said = capsys.readouterr().err
    assert "ZeroDivisionError: a fault" in said
    assert "gsm8k: the run failed by a fault of this program" in said


def test_a_chat_may_think(monkeypatch, tmp_path):
    asked = []

    def run(_, settings, *__):
        asked.append(settings)
        raise Refused("the settings were all that is wanted")

    monkeypatch.setattr("ci.regression.accuracy.run", run)
    given = ["run", "--preset", "minimax-m2.5", "--release", "0.5.9", "--arch", "gfx942"]
    given += ["--output", str(tmp_path / "r.json")]
    for further in ([], ["--protocol", "chat"], ["--protocol", "chat", "--max-tokens", "4000"]):
        assert accuracy_cli.main([*given, *further]) == 2
    assert [settings.max_tokens for settings in asked] == [512, 8192, 4000]


def test_the_power_is_that_of_the_questions_that_there_are(capsys, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "", "answer": ""}\n' * 30)
    given = ["run", "--preset", "minimax-m2.5", "--release", "0.5.9", "--arch", "gfx942"]
    for further in (["--limit", "500"], ["--limit", "7"]):
        assert accuracy_cli.main([*given, "--data", str(tmp_path), "--dry-run", *further]) == 0
    said = capsys.readouterr().out
    assert "Power of 30 questions" in said
    assert "Power of 7 questions" in said
    assert accuracy_cli.main([*given, "--data", str(tmp_path / "none"), "--dry-run"]) == 2


RUN = ["run", "--preset", "deepseek-v3.2", "--release", "0.5.9", "--arch", "gfx942"]


@pytest.mark.parametrize("how", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_five_shots_are_refused_for_an_nsa_model_before_anything_is_begun(how, capsys, tmp_path):
    output = str(tmp_path / "result.json")
    assert accuracy_cli.main([*RUN, "--shots", "5", "--output", output, *how]) == 2
    said = capsys.readouterr()
    assert "give --shots 20 or more, 25 to 30 are usual" in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cli", [accuracy_cli, throughput_cli], ids=["gsm8k", "throughput"])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--tp", "0"), "0: at least 1"),
        (("--tp", "all"), "'all' is no whole number"),
        (("--start-timeout", "an hour"), "'an hour' is no number of seconds above 0"),
        (("--server-args", "--model 'x"), "No closing quotation"),
        (("--pristine-args", "'"), "No closing quotation"),
        (("--launcher", "{pyhton} -m sglang"), "a command in which {python} and {tree} are filled"),
        (("--launcher", "'x"), "No closing quotation"),
        (("--launcher", ""), "--launcher is empty; by default it is '{python} -m sglang"),
        (("--slugs", "indexer,"), "--slugs: '' in no patch of 0.5.9; it has layernorm, indexer"),
        (("--patched-url", "localhost:30000"), "is no URL: write http://HOST:PORT"),
        (("--output", "results"), "'results' does not end in .json"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_anything_is_begun(cli, given, sentence, capsys):
    try:
        code = cli.main([*RUN, *given, "--dry-run"])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--margin", "one"), "'one' are no points of accuracy: a number between 0 and 100"),
        (("--margin", "nan"), "'nan' are no points of accuracy"),
        (("--shots", "-3"), "-3: at least 0"),
        (("--limit", "0"), "0: at least 1"),
        (("--request-timeout", "inf"), "'inf' is no number of seconds"),
    ],
)
def test_a_setting_that_no_evaluation_has_is_wrong_usage(given, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        accuracy_cli.main([*RUN, *given])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_what_was_begun_without_its_data_is_no_run_of_another_setting(tmp_path):
    """Whose server could not reach the hub is told of --data, and follows that."""
    work = tmp_path / "result"
    runs.begin(work, {"data": "hub"})
    (work / comparison.FIRST_SERVER).write_text("{}")
    runs.begin(work, {"data": "folder"})
    assert not (work / comparison.FIRST_SERVER).exists()
    runs.keep(work, "pristine", 1, {})
    with pytest.raises(Refused, match="another setting"):
        runs.begin(work, {"data": "hub"})


def test_no_comparison_takes_the_place_of_another_in_evidence(tmp_path, monkeypatch):
    """Of one model on one machine, releases and sets of slugs are many; the page shows them all."""
    monkeypatch.setattr(evidence, "HOUSE", tmp_path)
    for folder in ("patches", "overlay"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "evidence").mkdir()
    parser = argparse.ArgumentParser()
    comparison.add_arguments(parser)
    urls = ["--pristine-url", "http://a", "--patched-url", "http://b"]
    for release in ("0.5.9", "0.5.10.post1"):
        for slugs in ([], ["--slugs", "indexer"], ["--slugs", "layernorm"]):
            given = ["--preset", "deepseek-v3.2", "--release", release, "--arch", "gfx942"]
            compared = comparison.from_arguments(parser.parse_args([*given, *urls, *slugs]))
            evidence.write("gsm8k", compared, {})
    found = page.load(tmp_path, "gsm8k*.json")
    assert len(found) == 6
    assert {each.device for each in found} == {"gfx942"}
    assert "gsm8k.deepseek-v3.2.0.5.9.all.gfx942.json" in {each.path.name for each in found}


def test_a_machine_that_takes_no_result_is_a_failed_run(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    given = ["--shots", "25", "--output", str(tmp_path / "taken/result.json")]
    assert accuracy_cli.main([*RUN, *given]) == 4
    said = capsys.readouterr().err
    assert "taken" in said
    assert "Traceback" not in said


def test_the_help_documents_the_exit_codes(capsys):
    for arguments in (["--help"], ["decide", "--help"], ["run", "--help"]):
        with pytest.raises(SystemExit):
            accuracy_cli.main(arguments)
        said = capsys.readouterr().out
        assert "0    PASS" in said
        assert "3    INCONCLUSIVE" in said
