"""Catches a run that is done twice or left out, and a server that is left behind."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

from tests.platform.trees import ROOT

pytestmark = [pytest.mark.long, pytest.mark.slow]
STUB = "{python} -m tests.regression.stub"
QUESTIONS = 320  # enough for a PASS at a margin of 2 points, where nothing is lost


@pytest.fixture
def gsm8k(data, tmp_path):
    def command(*further):
        given = ["run", "--preset", "minimax-m2.5", "--release", "0.5.10.post1"]
        given += [
            "--arch",
            "gfx942",
            "--limit",
            str(QUESTIONS),
            "--concurrency",
            "16",
            "--margin",
            "2",
        ]
        given += ["--data", str(data), "--output", str(tmp_path / "result.json")]
        return [sys.executable, "ci/gsm8k.py", *given, "--start-timeout", "30", *further]

    def run(*further):
        done = subprocess.run(
            command(*further), cwd=ROOT, env=environment(),
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        result = tmp_path / "result.json"
        return done, json.loads(result.read_text()) if result.exists() else None

    run.command = command
    run.work = tmp_path / "result"
    return run


def environment(faults: str = "") -> dict[str, str]:
    launcher = f"env STUB={faults} {STUB}" if faults else STUB
    return os.environ | {"SERVER_LAUNCHER": launcher}


def test_both_arms_in_turn_then_a_verdict_and_nothing_is_run_twice(gsm8k):
    done, result = gsm8k()
    assert done.returncode == 0, done.stderr
    assert result["verdict"] == "PASS"
    order = [line for line in done.stderr.splitlines() if line.startswith("==")]
    assert [line.split(": ")[1] for line in order] == [
        "pristine 1", "patched 1", "pristine 2", "patched 2",
    ]  # fmt: skip
    assert "Power of 320 questions at the look after 2 runs" in done.stderr.partition("== run 1")[0]
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


def test_a_server_that_never_starts_is_a_failed_run_with_its_log(gsm8k):
    launcher = f"{sys.executable} -c print('no.such.flag')"
    done, _ = gsm8k("--launcher", launcher)
    assert done.returncode == 4
    assert "ended with" in done.stderr
    assert "pristine-1.server.log" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
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
