"""Catches an arm that is not what it says, and a failure that is counted as an answer.

Stand-ins serve both arms from this process, and ci/gsm8k.py runs in it: lm-eval is imported once.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("lm_eval")

from ci.regression import (
    accuracy,
    accuracy_cli,
    commands,
    evaluate,
    exits,
    speed,
    throughput,
    throughput_cli,
)
from ci.regression.errors import Refused, RunFailed
from tests.platform import trees
from tests.regression import toy
from tests.regression.stub import serving

ARGUMENTS = ["run", "--release", "0.5.10.post1", "--arch", "gfx942", "--runs", "1", "--limit", "12"]


@pytest.fixture
def gsm8k(data, tmp_path, capsys):
    """Exit code, what was said, and the result of two stubs with faults of their own."""

    def run(*further, pristine="pristine", patched="", preset="minimax-m2.5"):
        output = tmp_path / "result.json"
        with serving(pristine) as one, serving(patched) as other:
            given = ["--preset", preset, "--data", str(data), "--output", str(output)]
            given += ["--pristine-url", one, "--patched-url", other, *further]
            code = accuracy_cli.main(ARGUMENTS + given)
        said = capsys.readouterr().err
        return code, said, json.loads(output.read_text()) if output.exists() else None

    run.work = tmp_path / "result"
    return run


def test_runs_of_servers_that_are_what_they_say_are_judged(gsm8k):
    code, said, result = gsm8k()
    assert code == exits.INCONCLUSIVE, said  # one run of twelve questions
    assert "Power of 12 questions at the look after 2 runs" in said
    assert result["arms"]["patched"][0]["sglang"] == "0.5.10.post1"
    # By URL: neither what this machine has, nor an emulation.
    assert set(result["measured_on"].values()) == {None}
    assert result["arms"]["patched"][0]["shortest_prompt_tokens"] == words(shots=5)


def test_a_chat_is_asked_the_same_with_as_many_shots(gsm8k):
    code, said, result = gsm8k("--protocol", "chat", "--shots", "3")
    assert code == exits.INCONCLUSIVE, said
    [run] = result["arms"]["patched"]
    assert (run["accuracy"], run["questions"]) == (1, 12)
    assert run["shortest_prompt_tokens"] == words(shots=3)


def test_a_chat_that_thinks_of_the_question_is_not_cut_off_by_the_stop_words_of_completions(gsm8k):
    code, said, result = gsm8k("--protocol", "chat", pristine="pristine,thinks", patched="thinks")
    assert code == exits.INCONCLUSIVE, said
    assert [run[0]["accuracy"] for run in result["arms"].values()] == [1, 1]
    shutil.rmtree(gsm8k.work)
    gsm8k.work.with_suffix(".json").unlink()
    _, _, result = gsm8k(pristine="pristine,thinks", patched="thinks")
    assert [run[0]["invalid"] for run in result["arms"].values()] == [1, 1]  # which stop there


def test_answers_without_a_number_have_a_rate_of_their_own_and_give_no_verdict(gsm8k):
    given = ("--runs", "2", "--margin", "40")
    code, said, result = gsm8k(*given, pristine="pristine,mute", patched="mute")
    assert code == exits.INCONCLUSIVE, said
    assert result["statistics"]["invalid"]["pristine"] == 1
    assert "100.00% of the answers of the pristine arm hold no number" in result["message"]
    assert result["further_runs"] is None


def test_a_result_names_its_process_and_tells_of_its_runs(gsm8k):
    _, _, result = gsm8k()
    assert result["written_by"]["process"] == os.getpid()
    assert result["ledger"]["outcomes"] == {"begun": 2, "whole": 2}
    (gsm8k.work / "patched-1.jsonl").write_text("")
    code, said, _ = gsm8k()
    assert code == exits.REFUSED
    assert "patched-1.jsonl is not what patched-1 wrote" in said


@pytest.mark.parametrize(("tokens", "refused"), [(2048, True), (2049, False)])
def test_a_prompt_of_exactly_index_topk_tokens_is_selected_whole(tokens, refused):
    settings = evaluate.Settings("toy", index_topk=2048)
    with pytest.raises(Refused) if refused else contextlib.nullcontext():
        evaluate.refuse_short_prompt(tokens, settings)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("another at the end", "was another server at the end of the run"),
        ("backend", "attention_backend"),
    ],
)
def test_throughput_of_another_server_gives_no_verdict(
    fault, sentence, tmp_path, monkeypatch, capsys
):
    def bench(arm, comparison, point, url, work):
        body = json.dumps({"prompt": "Question: Tom has 3 pens and buys 4 ."}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body)).read()
        return dict.fromkeys(speed.METRICS, 1.0)

    monkeypatch.setattr(throughput, "_bench", bench)
    with serving("pristine") as one, serving(fault) as other:
        given = ["run", "--release", "0.5.10.post1", "--arch", "gfx942", "--preset", "minimax-m2.5"]
        given += ["--pristine-url", one, "--patched-url", other]
        code = throughput_cli.main([*given, "--output", str(tmp_path / "t.json")])
    assert code == exits.REFUSED
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


def words(shots: int) -> int:
    """Of a prompt."""
    asked, told = "Question: Tom has 3 pens and buys 4 . How many ? Answer:", "#### 7"
    return shots * len([*asked.split(), *told.split()]) + len(asked.split())


def test_wrong_answers_are_a_regression(gsm8k):
    code, _, result = gsm8k("--limit", "40", "--runs", "2", patched="wrong")
    assert (code, result["verdict"]) == (exits.REGRESSION, "REGRESSION")
    assert result["statistics"]["losses"] > 5


@pytest.mark.parametrize(
    ("faults", "code", "reason"),
    [
        ("fail", exits.RUN_FAILED, "answered 500"),
        ("abort", exits.RUN_FAILED, 'ended by "abort"'),
        ("uncounted", exits.RUN_FAILED, "an answer without one choice"),
        ("foreign", exits.REFUSED, "runs patch set another"),
        ("inactive", exits.REFUSED, "fp8-kv-write inactive: no HIP build"),
        ("pristine", exits.REFUSED, "runs a pristine tree"),
        ("older", exits.REFUSED, 'sglang: "0.5.10.post1" and "0.5.9"'),
        ("paged", exits.REFUSED, "page_size: 1 and 64"),
        ("backend", exits.REFUSED, 'attention_backend: "aiter" and "triton"'),
        ("numeric", exits.RUN_FAILED, "a text that is 7"),
        ("misreported", exits.RUN_FAILED, "`internal_states` is not as the patches write it"),
        ("another at the end", exits.REFUSED, "was another server at the end of the run"),
    ],
)
def test_a_server_that_fails_or_is_another_gives_no_verdict(gsm8k, faults, code, reason):
    found, said, result = gsm8k(patched=faults)
    assert found == code, said
    assert reason in said
    assert result is None
    assert not (gsm8k.work / "patched-1.jsonl").exists()
    assert "Traceback" not in said


def test_a_flag_that_the_pristine_arm_alone_is_given_may_differ(gsm8k):
    code, said, _ = gsm8k("--pristine-args", "--page-size 1", patched="paged")
    assert code == exits.INCONCLUSIVE, said


def test_a_pristine_arm_with_patches_on_is_refused(gsm8k):
    code, said, _ = gsm8k(pristine="")
    assert code == exits.REFUSED
    assert "the pristine server reports" in said


def test_slugs_that_were_not_asked_for_may_not_be_on(gsm8k):
    code, said, _ = gsm8k("--slugs", "fp8-kv-write")
    assert code == exits.REFUSED
    assert "layernorm, indexer, nsa-fp8-kv, rope-kv-store active beside fp8-kv-write" in said


def test_a_patch_whose_calls_take_the_pristine_path_does_not_pass(gsm8k):
    given = ("--runs", "2", "--margin", "40")  # which twelve questions can exclude
    code, said, result = gsm8k(*given, patched="declined")
    assert (code, result["verdict"]) == (exits.INCONCLUSIVE, "INCONCLUSIVE"), said
    assert "fp8-kv-write: the cache is torch.bfloat16" in result["message"]
    assert result["further_runs"] is None
    assert "no loss above 40.0%" in result["message"]  # for that alone


def test_prompts_that_sparse_selection_takes_whole_are_refused(gsm8k):
    code, said, result = gsm8k("--shots", "25", preset="glm-5")  # some 400 words of the toy
    assert code == exits.REFUSED
    assert "not longer than index_topk" in said
    assert result is None


@pytest.mark.parametrize(("shots", "asked"), [(4, True), (3, False)])
def test_where_the_tokenizer_is_such_prompts_are_refused_before_a_server(
    shots, asked, monkeypatch, tmp_path
):
    """As long as the toy's tokenizer has them, not in the words that a stub counts."""
    model, folder = tmp_path / "model", tmp_path / "data"
    toy.tokenizer().save_pretrained(model)
    toy.write_data(folder, toy.FILLER)
    started = []

    def serving(*_):
        started.append(True)
        raise RunFailed("a server was started")

    monkeypatch.setattr(accuracy, "serving", serving)
    given = ["--preset", "glm-5", "--data", str(folder), "--shots", str(shots)]
    given += ["--model", str(model), "--output", str(tmp_path / "result.json")]
    assert accuracy_cli.main(ARGUMENTS + given) == (exits.RUN_FAILED if asked else exits.REFUSED)
    assert bool(started) == asked


def test_questions_are_read_beside_the_packages_of_each_release(release, data, tmp_path):
    """datasets of another age than the image's huggingface_hub does not even import."""
    program = (
        "import sys; from pathlib import Path; from ci.regression import evaluate\n"
        "import lm_eval.models.openai_completions, transformers\n"
        "data, work = map(Path, sys.argv[1:])\n"
        "task = evaluate.load(evaluate.Settings('toy', data=data), work)\n"
        "print(transformers.__version__, len(list(task.test_docs())))"
    )
    path = os.pathsep.join(map(str, filter(None, [trees.packages(release), trees.ROOT])))
    done = subprocess.run(
        [sys.executable, "-c", program, data, tmp_path], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = {"0.5.9": "4.57.1"}.get(release, "5.3.0")
    assert done.stdout.split() == [wanted, str(toy.QUESTIONS)]


def test_packages_that_do_not_fit_each_other_are_named(capsys):
    def does():
        raise ImportError("cannot import name 'later' from 'hub'")

    assert commands.answered("gsm8k", does) == exits.REFUSED
    said = capsys.readouterr().err
    assert "packages that do not fit each other: cannot import name 'later'" in said
    assert "Traceback" not in said


def test_a_hub_out_of_reach_is_refused_with_the_way_round_it(tmp_path, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no route to huggingface.co")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(Refused, match=r"of the hub: ConnectionError: no route.*--data FOLDER"):
        evaluate.load(evaluate.Settings("toy"), tmp_path)
