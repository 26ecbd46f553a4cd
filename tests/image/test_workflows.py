"""Catches a workflow whose steps call scripts by names or flags that they do not have, or that does
harm: reaches a machine from a pull request, hands out a secret, queues days of work unasked."""

import argparse
import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ci import parity
from ci.regression import accuracy_cli, decide, throughput_cli
from ci.regression.exits import INCONCLUSIVE
from ci.regression.presets import RELEASES
from tests.image.layout import DIGEST, stub
from tests.platform import trees
from tests.platform.trees import ROOT
from tests.regression import drawn

WORKFLOWS = ROOT / ".github/workflows"
GPUS = {f"card{i}": {"VRAM Total Used Memory (B)": str(300 << 20)} for i in range(8)}
AGENT = "  Name:                    gfx942\n  ISA:  amdgcn-amd-amdhsa--gfx942:sramecc+:xnack-"
RUNNERS = ("--gfx942-runner", '["mi300"]', "--gfx950-runner", '["mi35x"]')
PARTS = ("releases", "archs", "rocms", "sets", "presets")


def workflow(name: str) -> dict:
    return yaml.safe_load((WORKFLOWS / name).read_text())


def rocminfo(folder: Path, agents: int) -> dict[str, str]:
    """A machine whose container may use so many GPUs."""
    return stub(folder, "rocminfo", "cat <<X\n" + "\n".join([AGENT] * agents) + "\nX")


def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / script, *map(str, arguments)]
    given = os.environ | environment
    return subprocess.run(command, env=given, capture_output=True, text=True)


def matrix(*arguments: str) -> list[dict]:
    done = run("ci/amd/matrix.py", *RUNNERS, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["include"]


def untouched(by_hand: bool) -> list[str]:
    """What the first job asks for where nobody chose: by hand, and for a tag."""
    amd = workflow("amd.yml")
    inputs = amd[True]["workflow_dispatch"]["inputs"]  # PyYAML reads the key `on` as true
    for_a_tag = amd["jobs"]["plan"]["steps"][-1]["env"]
    asked = {
        name: inputs[name]["default"]
        if by_hand
        else re.search(r"\|\| '(.*)'", for_a_tag[name.upper()])[1]
        for name in PARTS
    }
    return [word for name, value in asked.items() for word in (f"--{name}", value)]


# The steps' commands -----------------------------------------------------------------------------


def commands(job: dict, row: dict, folder: Path) -> list[list[str]]:
    """What the steps of a job run of ci/, for one row of the matrix; none of it is done."""
    noted = '#!/bin/bash\necho "$0" "${@@Q}" >>log\n'
    for path in filter(Path.is_file, ROOT.glob("ci/**/*")):
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(ROOT)).write_text(noted)
        (folder / path.relative_to(ROOT)).chmod(0o755)

    def filled(text: object) -> str:
        text = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda name: str(row[name[1]]), str(text))
        return re.sub(r"\$\{\{.*?\}\}", "1", text)

    environment = stub(folder / "bin", "python3", 'exec bash "$@"')
    for step in job["steps"]:
        asked = re.search(r"contains\(matrix\.steps, '(\w+)'\)", str(step.get("if")))
        if "ci/" in step.get("run", "") and (not asked or asked[1] in row["steps"].split()):
            assert "${{" not in step["run"], f"{step['name']}: pass values by env"
            given = {k: filled(v) for k, v in (job["env"] | step.get("env", {})).items()}
            given |= environment | {"GITHUB_STEP_SUMMARY": "summary"}
            command = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
            subprocess.run(command, cwd=folder, env=given, check=True)
    return [shlex.split(line) for line in (folder / "log").read_text().splitlines()]


PARSERS = {
    "ci/parity.py": parity.parser,
    "ci/gsm8k.py": accuracy_cli.parser,
    "ci/throughput.py": throughput_cli.parser,
}


def slugs_of(command: list[str]) -> str | None:
    """What a command says of the slugs, read as its script reads it; fails where that does not."""
    script, *arguments = command
    if script in PARSERS:
        given = PARSERS[script]().parse_args(arguments)
        assert not given.output.is_absolute()
        return given.slugs or ""
    if script == "ci/image/build.py":
        done = run(script, *arguments, "--base", f"x@{DIGEST}", "--print")
        assert done.returncode == 0, done.stderr
        return re.search(r"SLUGS=(\S*)", done.stdout)[1].strip("'")
    if script == "ci/amd/gpus.py":
        assert run(script, *arguments, "--wait", "0", PATH="").returncode == 1, "no usage error"
    elif script == "ci/test":
        own, of_pytest = " ".join(arguments).split(" -- ")
        known = (ROOT / "ci/test").read_text() + (ROOT / "tests/conftest.py").read_text()
        for flag in re.findall(r"--[\w-]+", own + of_pytest):
            assert flag in known or flag == "--junitxml", flag
    elif script == "ci/amd/summary.py":
        assert run(script, *arguments).returncode == 0
    else:
        assert command[-2:] == ["/opt/rocm-patches/ci/image/smoke.py", "gpu"], command
    return None


@pytest.mark.parametrize("slug", ["", "indexer"])
@pytest.mark.parametrize("steps", ["tests parity gsm8k", "throughput"])
def test_each_step_runs_its_script_as_the_script_wants_it_in_the_jobs_image(slug, steps, tmp_path):
    row = next(row for row in matrix() if row["steps"] == steps) | {"slug": slug}
    found = []
    for script, *arguments in commands(workflow("amd.yml")["jobs"]["compare"], row, tmp_path):
        if script in ("ci/amd/in_image.sh", "ci/amd/clean_up.sh"):
            assert arguments.pop(0) == "sglang-rocm-patches:1-1-1"
        elif script == "ci/image/build.py":
            assert "sglang-rocm-patches:1-1-1" in arguments
        if script == "ci/amd/in_image.sh":
            script, *arguments = arguments
        if script != "ci/amd/clean_up.sh":
            found.append((script, slugs_of([script, *arguments])))
    asked = {"ci/test" if s == "tests" else f"ci/{s}.py" for s in steps.split()}
    assert asked <= {script for script, _ in found}
    assert {slugs for _, slugs in found if slugs is not None} == {slug}


def test_a_start_by_hand_with_nothing_chosen_is_four_jobs_that_run_every_slug():
    rows = matrix(*untouched(by_hand=True))
    assert len(rows) == 4
    assert len({(row["release"], row["arch"], row["rocm"]) for row in rows}) == 1
    assert run_slugs(rows) == set(trees.slugs(rows[0]["release"]))


def test_a_tag_starts_few_jobs_in_which_every_slug_runs():
    rows = matrix(*untouched(by_hand=False))
    assert len(rows) <= 16
    for release in RELEASES:
        for arch in ("gfx942", "gfx950"):
            jobs = [row for row in rows if (row["release"], row["arch"]) == (release, arch)]
            assert run_slugs(jobs) == set(trees.slugs(release))


def run_slugs(rows: list[dict]) -> set[str]:
    from ci.regression.presets import preset

    assert {row["slug"] for row in rows} == {""}  # all of them on
    return {s for r in rows for s in preset(r["preset"], r["release"], r["arch"]).slugs}


def test_the_first_job_says_what_will_be_queued(tmp_path):
    summary = tmp_path / "summary.md"
    rows = matrix(*untouched(by_hand=True), "--summary", str(summary))
    first, *_, last = summary.read_text().splitlines()
    hours = sum(row["minutes"]["job"] for row in rows) * 8 / 60
    assert first == f"### 4 jobs, at most {hours:.0f} GPU hours"
    assert last.startswith(f"| {rows[-1]['name']} | mi300 | ")
    step = workflow("amd.yml")["jobs"]["plan"]["steps"][-1]["run"]
    assert '--summary "$GITHUB_STEP_SUMMARY"' in step


def test_a_runner_that_is_not_set_is_named_before_anything_is_queued():
    env = workflow("amd.yml")["jobs"]["plan"]["steps"][-1]["env"]
    assert env["GFX942_RUNNER"] == "${{ vars.GFX942_RUNNER }}", "no default: it waits for ever"
    none = ("--gfx942-runner", "", "--gfx950-runner", "")
    done = run("ci/amd/matrix.py", *none)
    assert done.returncode == 2
    assert "set GFX942_RUNNER, GFX950_RUNNER (repository settings" in done.stderr
    done = run("ci/amd/matrix.py", *RUNNERS[:2], *none[2:], "--archs", "gfx942")
    assert done.returncode == 0, "a chip that is not asked for needs none"


def test_the_limits_are_those_of_the_matrix():
    """A number in the workflow beside that of matrix.py would be a second one."""
    job = workflow("amd.yml")["jobs"]["compare"]
    limits = [step["timeout-minutes"] for step in job["steps"] if "timeout-minutes" in step]
    named = [re.fullmatch(r"\$\{\{ matrix\.minutes\.(\w+) \}\}", limit)[1] for limit in limits]
    assert job["timeout-minutes"] == "${{ matrix.minutes.job }}"
    for row in matrix():
        assert set(row["minutes"]) <= {*named, "job"}
        assert set(row["steps"].split()) <= set(row["minutes"])
        assert row["minutes"]["job"] <= 720


def test_a_secret_is_only_in_a_job_with_an_environment():
    for path in WORKFLOWS.glob("*.yml"):
        for name, job in workflow(path.name)["jobs"].items():
            assert "secrets." not in str(job) or job.get("environment"), (path.name, name)


def test_the_accuracy_of_all_jobs_is_judged_together(tmp_path):
    """Two regressions among many, and a job with no result."""
    rows = [row for row in matrix() if "gsm8k" in row["steps"]]
    clean = [drawn.run(f"run {number}") for number in range(2)]
    lossy = [drawn.run(f"run {number}", range(13)) for number in range(2)]
    for number, row in enumerate(rows[1:]):
        found = decide.decide(clean, lossy if number < 2 else clean)
        path = tmp_path / f"results-{row['name']}/gsm8k.json"
        path.parent.mkdir()
        path.write_text(json.dumps(found.as_json() | {"ledger": {"folder": row["name"]}}))
    done = run("ci/amd/verdict.py", tmp_path, json.dumps({"include": matrix()}))
    assert done.returncode == INCONCLUSIVE, done.stderr
    assert f"INCONCLUSIVE in 2 of {len(rows) - 1} configurations" in done.stdout
    assert f"| {rows[1]['name']} | INCONCLUSIVE | " in done.stdout
    assert f"- **no result**: {rows[0]['name']}" in done.stdout


def test_jobs_without_a_result_do_not_pass(tmp_path):
    include = json.dumps({"include": [{"name": "one", "steps": "parity gsm8k"}]})
    done = run("ci/amd/verdict.py", tmp_path, include)
    assert done.returncode == 4
    assert "- **no result**: one" in done.stdout


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"include": 3}', '{"include": [3]}', "{"])
def test_a_matrix_of_another_shape_is_no_verdict(text, tmp_path):
    done = run("ci/amd/verdict.py", tmp_path, text)
    assert done.returncode == 2
    assert "MATRIX is not what ci/amd/matrix.py says" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["{", "3", '{"verdict": 3}'])
def test_a_torn_result_is_a_sentence_and_no_verdict(text, tmp_path):
    (tmp_path / "results-one").mkdir()
    (tmp_path / "results-one/gsm8k.json").write_text(text)
    include = json.dumps({"include": [{"name": "one", "steps": "gsm8k"}]})
    done = run("ci/amd/verdict.py", tmp_path, include)
    assert done.returncode == 2
    assert "PASS" not in done.stdout
    assert "gsm8k.json" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_a_container_is_named_and_sees_the_token_by_name_alone(engine, tmp_path):
    machine = stub(tmp_path / "bin", engine, f'echo "$@" >>{tmp_path}/log')
    machine |= {"HOME": str(tmp_path), "HF_TOKEN": "hf_secret", "CONTAINER": "mine"}
    for script in (["in_image.sh", "image", "ci/test"], ["clean_up.sh", "image"]):
        command = [ROOT / "ci/amd" / script[0], *script[1:]]
        subprocess.run(command, env=machine | {"CONTAINER_ENGINE": engine}, check=True)
    said = (tmp_path / "log").read_text()
    assert "run --rm --init --name mine --device /dev/kfd" in said
    assert "--env HF_TOKEN " in said
    assert "hf_secret" not in said
    assert said.count("container rm --force mine") == 2
    assert said.endswith("image rm --force image\n")


# What keeps a workflow from doing harm -----------------------------------------------------------


@pytest.mark.parametrize("name", ["amd.yml", "cpu.yml"])
def test_a_workflow_can_read_and_nothing_else_and_ends(name):
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    assert "concurrency" in found
    for job in found["jobs"].values():
        assert "timeout-minutes" in job
        assert "permissions" not in job
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_artifacts_hold_results_and_evidence_and_no_compiled_code():
    from ci.regression import commands
    from ci.regression.servers import Arm

    job = workflow("amd.yml")["jobs"]["compare"]
    upload = next(s["with"] for s in job["steps"] if "upload-artifact" in s.get("uses", ""))
    kept, left_out = upload["path"].split()
    assert (kept, upload["overwrite"]) == ("results", True)
    for asked in re.findall(r"--output (results/(?:gsm8k|throughput)\.json) --evidence", str(job)):
        work = commands.work_of(argparse.Namespace(work=None, output=Path(asked)))
        for name, path in Arm("patched").variables(work / "caches").items():
            if name.endswith("CACHE_DIR"):
                assert fnmatch.fnmatch(f"!{path}/kernel", left_out), path


def test_pull_requests_never_reach_an_amd_machine():
    assert set(workflow("amd.yml")[True]) == {"workflow_dispatch", "push"}
    assert workflow("amd.yml")[True]["push"] == {"tags": ["v*"]}


def test_a_pinned_action_says_its_version():
    for path in WORKFLOWS.glob("*.yml"):
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


# The scripts -------------------------------------------------------------------------------------


def test_the_matrix_has_each_release_chip_and_slug_with_a_model_that_runs_it():
    from ci.regression.presets import preset

    rows = matrix("--rocms", "7.0,7.2")
    assert len({row["name"] for row in rows}) == len(rows)
    for release in RELEASES:
        for arch in ("gfx942", "gfx950"):
            for rocm in ("7.0", "7.2"):
                image = {"release": release, "arch": arch, "rocm": rocm}
                jobs = [row for row in rows if image.items() <= row.items()]
                for part in ("parity", "gsm8k", "throughput"):
                    alone = [r["slug"] for r in jobs if r["slug"] and part in r["steps"].split()]
                    assert alone == list(trees.slugs(release))
                assert sum("tests" in row["steps"] for row in jobs) == 1
                for row in jobs:
                    runs = preset(row["preset"], release, arch).slugs
                    assert row["slug"] in runs if row["slug"] else set(runs) & set(alone)
                    assert row["runner"] == ["mi300" if arch == "gfx942" else "mi35x"]


def test_a_release_that_cannot_start_a_model_gets_another_one():
    of = {
        release: {
            row["preset"] for row in matrix("--releases", release) if row["slug"] == "indexer"
        }
        for release in RELEASES
    }
    assert of == {"0.5.9": {"deepseek-v3.2"}, "0.5.10.post1": {"glm-5"}}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--releases", "0.5.8"), "'0.5.8' is none of 0.5.9, 0.5.10.post1"),
        (("--sets", "some"), "'some' is none of all, each"),
        (("--gfx942-runner", "mi300"), "'mi300' is no list of labels: written like"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused(arguments, sentence):
    done = run("ci/amd/matrix.py", *RUNNERS, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("used", "arguments", "sentence"),
    [
        ({"card1": 40 << 30}, ("--count", "4"), "memory is in use: card1 40960 MiB"),
        ({}, ("--count", "8"), "4 GPUs can be used here, 8 are needed"),
        ({}, ("--arch", "gfx950"), "gfx950 is asked for, gfx942 is here"),
    ],
)
def test_a_machine_that_does_not_fit_or_is_busy_is_refused(used, arguments, sentence, tmp_path):
    """Of eight cards, which rocm-smi sees all, the container has four."""
    gpus = GPUS | {c: {"VRAM Total Used Memory (B)": str(b)} for c, b in used.items()}
    done = on_machine(tmp_path / "bin", json.dumps(gpus), *arguments)
    assert done.returncode == 1
    assert sentence in done.stderr


@pytest.mark.parametrize(
    "said", ["", "WARNING: asleep", "[]", "{}", '{"card0": 3}', '{"card0": {"VRAM": "1"}}',
             '{"card0": {"VRAM Total Used Memory (B)": "N/A"}}'],
)  # fmt: skip
def test_what_rocm_smi_says_otherwise_frees_no_gpu(said, tmp_path):
    done = on_machine(tmp_path / "bin", said)
    assert (done.returncode, done.stdout) == (1, "")
    assert "gpus.py: rocm-smi " in done.stderr
    assert "Traceback" not in done.stderr


def on_machine(folder: Path, said: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    stub(folder, "rocm-smi", f"echo {shlex.quote(said)}")
    there = rocminfo(folder, 4)
    return run("ci/amd/gpus.py", "--arch", "gfx942", "--wait", "0", *arguments, **there)


def test_the_summary_tells_what_passed_failed_broke_and_did_not_run(tmp_path):
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="0" skipped="2"/></testsuites>'
    )
    result = {"verdict": "REGRESSION", "message": "worse | by\n2 points"}
    (tmp_path / "gsm8k.json").write_text(json.dumps(result))
    (tmp_path / "parity.json").write_text(json.dumps({"verdict": "PASS", "reasons": []}))
    (tmp_path / "throughput.json").write_text("{")
    steps = "tests parity gsm8k throughput long"
    command = [sys.executable, ROOT / "ci/amd/summary.py", tmp_path, "MI300X", steps]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| tests | **FAIL** | 6 passed, 1 failed, 2 skipped |" in said
    assert "| parity | PASS |  |" in said
    assert "| GSM8K | **REGRESSION** | worse \\| by 2 points |" in said
    assert "| throughput | **broken** | throughput.json: " in said
    assert "| long tests | not run |  |" in said


BROKEN = {
    "parity": ["{", "[]", "3", '{"reasons": []}', '{"verdict": 3}', '{"verdict": "PASSED"}',
               '{"verdict": ["PASS"]}', '{"verdict": "PASS", "message": 3}',
               '{"verdict": "PASS", "reasons": [3]}', '{"verdict": "PASS", "reasons": "x"}'],
    "tests": ["<", "", '<testsuite tests="many"/>', '<testsuite tests="1" errors=""/>'],
}  # fmt: skip


@pytest.mark.parametrize(("step", "text"), [(s, text) for s in BROKEN for text in BROKEN[s]])
def test_what_is_torn_or_of_another_type_has_no_verdict(step, text, tmp_path):
    (tmp_path / f"{step}.{'xml' if step == 'tests' else 'json'}").write_text(text)
    done = run("ci/amd/summary.py", tmp_path, "MI300X", step)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"| {step} | **broken** | {step}." in done.stdout
    assert "PASS |" not in done.stdout
