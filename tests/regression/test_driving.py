"""Catches an arm that is not what it says, a failure counted as an answer, a server left behind."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

from ci.regression import presets
from ci.regression.comparison import HOUSE
from ci.regression.errors import Refused
from patchset import series
from tests.platform.trees import ROOT
from tests.regression import toy

pytestmark = [pytest.mark.long, pytest.mark.slow]
DIGEST = series.load(HOUSE).releases["0.5.10.post1"].digest
STUB = "{python} tests/regression/stub.py"
QUESTIONS = 320  # enough for a PASS at a margin of 1 point, where nothing is lost


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    toy.write_data(folder)
    return folder


@pytest.fixture
def gsm8k(data, tmp_path):
    def command(*further, preset="minimax-m2.5"):
        given = ["run", "--preset", preset, "--release", "0.5.10.post1", "--arch", "gfx942"]
        given += ["--data", str(data), "--limit", str(QUESTIONS), "--concurrency", "16"]
        given += ["--output", str(tmp_path / "result.json"), "--start-timeout", "30", *further]
        return [sys.executable, "ci/gsm8k.py", *given]

    def run(*further, faults="", preset="minimax-m2.5"):
        """`faults` are the patched server's alone: the launcher's environment says which arm."""
        done = subprocess.run(
            command(*further, preset=preset), cwd=ROOT, env=environment(faults),
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        result = tmp_path / "result.json"
        return done, json.loads(result.read_text()) if result.exists() else None

    run.command = command
    run.work = tmp_path / "result"
    return run


def environment(faults: str = "") -> dict[str, str]:
    launcher = f"env STUB={faults} {STUB}" if faults else STUB
    return os.environ | {"STUB_DIGEST": DIGEST, "SERVER_LAUNCHER": launcher}


def test_both_arms_in_turn_then_a_verdict_and_nothing_is_run_twice(gsm8k):
    done, result = gsm8k()
    assert done.returncode == 0, done.stderr
    assert result["verdict"] == "PASS"
    order = [line for line in done.stderr.splitlines() if line.startswith("==")]
    assert [line.split(": ")[1] for line in order] == [
        "pristine 1", "patched 1", "pristine 2", "patched 2",
    ]  # fmt: skip
    assert "Power of 320 questions x 2 runs" in done.stderr.partition("== run 1")[0]
    how = {run["server"] for run in result["arms"]["pristine"]}
    assert how == {"patched tree, switched off"}
    assert gsm8k.work.with_suffix(".md").read_text().startswith("### GSM8K minimax-m2.5")
    rows = [json.loads(line) for line in (gsm8k.work / "patched-2.jsonl").read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == list(range(QUESTIONS))
    assert all(row["correct"] and row["prediction"] == row["target"] for row in rows)

    again, _ = gsm8k("--runs", "3")
    assert again.stderr.count("kept from before") == 4
    other, _ = gsm8k("--shots", "3")
    assert other.returncode == 2
    assert "another setting" in other.stderr


def test_wrong_answers_are_a_regression(gsm8k):
    # The switch that makes the arm pristine comes after the launcher's `env`, so both arms have the
    # fault; a server given by URL has it alone.
    with serving("wrong") as url:
        done, result = gsm8k("--runs", "1", "--patched-url", url, "--limit", "40")
    assert (done.returncode, result["verdict"]) == (1, "REGRESSION")
    assert result["statistics"]["losses"] > 5


@pytest.mark.parametrize(
    ("faults", "code", "reason"),
    [
        ("fail", 4, "answered 500"),
        ("die", 4, "run failed"),
        ("foreign", 2, "runs patch set another"),
        ("inactive", 2, "fp8-kv-write inactive: no HIP build"),
    ],
)
def test_a_server_that_fails_or_is_another_gives_no_verdict(gsm8k, faults, code, reason):
    with serving(faults) as url:
        done, result = gsm8k("--runs", "1", "--patched-url", url, "--limit", "40")
    assert done.returncode == code, done.stderr
    assert reason in done.stderr
    assert result is None
    assert not (gsm8k.work / "patched-1.jsonl").exists()
    assert "Traceback" not in done.stderr


def test_a_pristine_arm_with_patches_on_is_refused(gsm8k):
    with serving("") as url:
        done, _ = gsm8k("--pristine-url", url)
    assert done.returncode == 2
    assert "the pristine server reports" in done.stderr


def test_a_server_that_never_starts_is_a_failed_run_with_its_log(gsm8k):
    launcher = f"{sys.executable} -c print('no.such.flag')"
    done, _ = gsm8k("--launcher", launcher)
    assert done.returncode == 4
    assert "ended with" in done.stderr
    assert "pristine-1.server.log" in done.stderr


def test_prompts_that_sparse_selection_takes_whole_are_refused(gsm8k):
    short, result = gsm8k("--shots", "25", preset="glm-5")  # 25 shots of the toy are some 400 words
    assert short.returncode == 2
    assert "not longer than index_topk" in short.stderr
    assert result is None


def test_five_shots_of_gsm8k_are_refused_for_an_nsa_model_before_a_server_is_started(tmp_path):
    done = subprocess.run(
        [sys.executable, "ci/gsm8k.py", "run", "--preset", "glm-5", "--release", "0.5.9",
         "--arch", "gfx942", "--shots", "5", "--output", tmp_path / "result.json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "index_topk" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_its_server(gsm8k, number):
    process = subprocess.Popen(
        gsm8k.command(), cwd=ROOT, env=environment("slow"), stderr=subprocess.PIPE, text=True
    )
    line = next(line for line in process.stderr if "at http://" in line)
    port = line.rpartition(":")[2].strip()
    process.send_signal(number)
    process.stderr.read()
    assert process.wait(60) == 130
    answer = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{port}/health"], capture_output=True, check=False
    )
    assert answer.returncode == 7  # nobody listens


class serving:  # noqa: N801  a context manager
    """A stub that is there already, with faults of its own."""

    def __init__(self, faults: str) -> None:
        self.faults = faults

    def __enter__(self) -> str:
        from ci.regression.servers import free_port, ready

        port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "tests/regression/stub.py", "--port", str(port)], cwd=ROOT,
            env=environment() | {"STUB": self.faults},
        )  # fmt: skip
        ready(f"http://127.0.0.1:{port}", 30)
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("arch", presets.ARCHS)
@pytest.mark.parametrize("version", presets.RELEASES)
@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_flag_of_a_preset_is_one_that_the_release_knows(name, version, arch):
    """Read from the release's own source: importing it needs a GPU or its stand-in."""
    from tests.platform.trees import pristine_tree

    known = (pristine_tree(version) / "sglang/srt/server_args.py").read_text()
    chosen = presets.preset(name, version, arch)
    for word in (*chosen.arguments, *chosen.pristine):
        if word.startswith("--"):
            assert f'"{word}"' in known or word in ("--tp", "--model-path"), word


def test_a_release_without_unified_attention_is_not_asked_for_it():
    new = presets.preset("minimax-m2.5", "0.5.10", "gfx942")
    old = presets.preset("minimax-m2.5", "0.5.9", "gfx942")
    assert "SGLANG_USE_AITER_UNIFIED_ATTN" in new.environment
    assert not old.environment
    assert "--page-size" not in old.flags


def test_gpt_oss_of_0_5_9_runs_on_triton():
    assert "aiter" not in presets.preset("gpt-oss-120b", "0.5.9", "gfx942").flags


def test_an_fp8_cache_that_0_5_9_cannot_run_is_not_asked_of_its_pristine_arm():
    assert presets.preset("glm-5", "0.5.9", "gfx950").pristine
    assert not presets.preset("glm-5", "0.5.9", "gfx942").pristine
    assert not presets.preset("glm-5", "0.5.10.post1", "gfx950").pristine


def test_an_nsa_model_gets_prompts_longer_than_its_selection():
    for preset in presets.PRESETS.values():
        assert (preset.shots >= 25) == bool(preset.index_topk)


def test_what_has_no_setting_is_refused():
    for wrong in (("llama", "0.5.9", "gfx942"), ("glm-5", "0.4", "gfx942"), ("glm-5", "0.5.9", "")):
        with pytest.raises(Refused):
            presets.preset(*wrong)
