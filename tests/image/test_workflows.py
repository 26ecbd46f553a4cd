"""Catches a workflow whose steps call scripts by names or flags that they do not have."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.image.layout import stub
from tests.platform import emulation, trees
from tests.platform.trees import ROOT
from tests.platform.value import Platform

WORKFLOWS = ROOT / ".github/workflows"
GPUS = {f"card{i}": {"VRAM Total Used Memory (B)": str(300 << 20)} for i in range(8)}
RUNNERS = ("--gfx942-runner", '["mi300"]', "--gfx950-runner", '["mi35x"]')


def workflow(name: str) -> dict:
    return yaml.safe_load((WORKFLOWS / name).read_text())


def matrix(*arguments: str) -> list[dict]:
    command = [sys.executable, ROOT / "ci/amd/matrix.py", *RUNNERS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["include"]


# The dry run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(memory) -> Path:
    """A copy of this checkout, for steps to write to."""
    copy = memory / "checkout"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    subprocess.run(["git", "init", "--quiet", copy], check=True)
    # The environment is made as on a GPU; the tools are those of this machine's environment.
    for path in (copy / "ci").glob("requirements-*.txt"):
        path.write_text("")
    (copy / "build").mkdir()
    for name in ("pristine", "trees"):
        (copy / "build" / name).symlink_to(ROOT / "build" / name)
    return copy


@pytest.fixture
def machine(tmp_path) -> dict[str, str]:
    """The environment of a runner's steps: docker and rocm-smi stood in for, linters too."""
    tree = trees.patched_tree("0.5.10.post1")
    emulated = emulation.environment(Platform("cpu", "gfx942"), tree)
    stub(tmp_path / "bin", "docker", f'exec {sys.executable} -m tests.image.docker "$@"')
    stub(tmp_path / "bin", "rocm-smi", f"echo '{json.dumps(GPUS)}'")
    for linter in ("ruff", "mypy", "hadolint", "shellcheck", "actionlint"):
        stub(tmp_path / "bin", linter, "exit 0")  # ci/test has just run them on the same files
    (tmp_path / "workspace").mkdir()
    return emulated | {
        "PYTHONPATH": "",
        "EMULATION": emulated["PYTHONPATH"],
        "PATH": f"{tmp_path / 'bin'}:{emulated['PATH']}",
        "HOME": str(tmp_path),
        "IMAGE_ROOT": str(tmp_path / "workspace"),
        "DOCKER_LOG": str(tmp_path / "docker.log"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "PYTEST_ADDOPTS": "-p tests.image.emulated --collect-only tests/modules/test_norm.py",
    }


def value(expression: str, known: dict[str, str]) -> str:
    """What an expression is worth: the first of its alternatives that is not empty."""
    for part in re.sub(r"^\$\{\{|\}\}$", "", expression).split("||"):
        name = part.strip()
        if name.startswith("'"):
            return name.strip("'")
        if name.startswith(("inputs.", "vars.", "secrets.")):
            continue  # as on a tag, with nothing set
        found = str(known[name])
        if found:
            return found
    return ""


def filled(text: object, known: dict[str, str]) -> str:
    return re.sub(r"\$\{\{.*?\}\}", lambda found: value(found[0], known), str(text))


def run_steps(
    job: dict, known: dict[str, str], checkout: Path, machine: dict[str, str]
) -> list[str]:
    """Run each script of a job as the runner does; the names of the steps that it ran."""
    ran = []
    for step in job["steps"]:
        if "run" not in step:
            continue
        given = {**job.get("env", {}), **step.get("env", {})}
        given = {name: filled(text, known) for name, text in given.items()}
        assert "${{" not in step["run"], f"{step['name']}: pass values by env, not into the script"
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command, cwd=checkout, env=machine | given, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{step['name']}\n{done.stdout}\n{done.stderr}"
        ran.append(step["name"])
    return ran


KNOWN = {"github.run_id": "7", "github.run_attempt": "1", "strategy.job-index": "0"}


@pytest.mark.slow
def test_each_amd_step_runs_with_the_flags_that_its_scripts_have(checkout, machine, tmp_path):
    jobs = workflow("amd.yml")["jobs"]
    assert run_steps(jobs["plan"], {}, checkout, machine) == ["Choose the jobs"]
    said = (tmp_path / "output").read_text().removeprefix("matrix=")
    row = next(row for row in json.loads(said)["include"] if row["suite"] and row["slug"] == "")
    row |= {"arch": "gfx942", "release": "0.5.10.post1"}  # what the stood-in machine is
    known = KNOWN | {f"matrix.{name}": text for name, text in row.items()}
    named = [step["name"] for step in jobs["compare"]["steps"] if "run" in step]
    assert run_steps(jobs["compare"], known, checkout, machine) == named
    # Tests that were only collected did not pass.
    assert "| tests | **FAIL** | 0 passed" in (tmp_path / "summary.md").read_text()
    log = (tmp_path / "docker.log").read_text().splitlines()
    image = "sglang-rocm-patches:7-1-0"
    assert next(line for line in log if line.startswith("build ")).endswith(f"--tag {image} .")
    assert sum(line.startswith("run ") and f" {image} " in line for line in log) == 6
    assert log[-1] == f"image rm --force {image}"


@pytest.mark.slow
def test_a_job_of_one_slug_names_it_to_every_script(checkout, machine, tmp_path):
    job = workflow("amd.yml")["jobs"]["compare"]
    chosen = ("Build the image", "Compare tokens", "Compare accuracy", "Compare throughput")
    steps = [step for step in job["steps"] if step.get("name", "").startswith(chosen)]
    assert len(steps) == len(chosen)
    row = next(row for row in matrix("--releases", "0.5.10.post1") if row["slug"] == "indexer")
    known = KNOWN | {f"matrix.{name}": text for name, text in row.items()}
    run_steps(job | {"steps": steps}, known, checkout, machine)
    log = (tmp_path / "docker.log").read_text()
    assert "--build-arg SLUGS=indexer" in log
    assert log.count("--slugs indexer") == 3


def test_the_cpu_workflow_runs_ci_test(checkout, machine):
    job = workflow("cpu.yml")["jobs"]["test"]
    scripts = [step["run"].split()[0] for step in job["steps"] if "run" in step]
    assert scripts == ["ci/test", "ci/test", "python3"]
    summary = job | {"steps": [step for step in job["steps"] if step.get("name") == "Summary"]}
    assert run_steps(summary, {}, checkout, machine) == ["Summary"]


# What keeps a workflow from doing harm -----------------------------------------------------------


@pytest.mark.parametrize("name", ["amd.yml", "cpu.yml"])
def test_a_workflow_can_read_and_nothing_else_and_ends(name):
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    assert "concurrency" in found
    for job in found["jobs"].values():
        assert job["timeout-minutes"] <= 720
        assert "permissions" not in job
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_pull_requests_never_reach_an_amd_machine():
    # PyYAML reads the key `on` as true.
    assert set(workflow("amd.yml")[True]) == {"workflow_dispatch", "push"}
    assert workflow("amd.yml")[True]["push"] == {"tags": ["v*"]}


def test_a_pinned_action_says_its_version():
    for path in WORKFLOWS.glob("*.yml"):
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


# The scripts -------------------------------------------------------------------------------------


def test_the_matrix_has_each_release_chip_and_slug_with_a_model_that_runs_it():
    from ci.regression.presets import PRESETS

    rows = matrix("--rocms", "7.0,7.2")
    for release in trees.RELEASES:
        for arch in ("gfx942", "gfx950"):
            for rocm in ("7.0", "7.2"):
                image = {"release": release, "arch": arch, "rocm": rocm}
                jobs = [row for row in rows if image.items() <= row.items()]
                alone = [row["slug"] for row in jobs if row["slug"]]
                assert alone == list(trees.slugs(release))
                assert sum(row["suite"] for row in jobs) == 1
                for row in jobs:
                    runs = PRESETS[row["preset"]].slugs
                    assert row["slug"] in runs if row["slug"] else set(runs) & set(alone)
                    assert row["runner"] == ["mi300" if arch == "gfx942" else "mi35x"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--releases", "0.5.8"), "'0.5.8' is none of 0.5.9, 0.5.10.post1"),
        (("--sets", "some"), "'some' is none of all, each"),
        (("--gfx942-runner", "mi300"), "invalid labels value: 'mi300'"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused(arguments, sentence):
    command = [sys.executable, ROOT / "ci/amd/matrix.py", *RUNNERS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("used", "arguments", "sentence"),
    [
        ({"card1": 40 << 30}, ("--count", "8"), "memory is in use: card1 40960 MiB"),
        ({}, ("--count", "16"), "8 GPUs are here, 16 are needed"),
        ({}, ("--arch", "gfx950"), "gfx950 is asked for, gfx942 is here"),
    ],
)
def test_a_machine_that_does_not_fit_or_is_busy_is_refused(used, arguments, sentence, tmp_path):
    gpus = GPUS | {c: {"VRAM Total Used Memory (B)": str(b)} for c, b in used.items()}
    environment = stub(tmp_path / "bin", "rocm-smi", f"echo '{json.dumps(gpus)}'")
    path = f"{environment['PATH']}:{ROOT / 'tests/platform/bin'}"
    command = [sys.executable, ROOT / "ci/amd/gpus.py", "--arch", "gfx942", "--wait", "0"]
    done = subprocess.run(
        [*command, *arguments],
        env=os.environ | {"PATH": path, "SGLANG_TEST_ARCH": "gfx942"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert sentence in done.stderr


def test_the_summary_tells_what_passed_failed_broke_and_did_not_run(tmp_path):
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="0" skipped="2"/></testsuites>'
    )
    result = {"verdict": "REGRESSION", "message": "worse | by\n2 points"}
    (tmp_path / "gsm8k.json").write_text(json.dumps(result))
    (tmp_path / "parity.json").write_text(json.dumps({"verdict": "PASS", "reasons": []}))
    (tmp_path / "throughput.json").write_text("{")
    command = [sys.executable, ROOT / "ci/amd/summary.py", tmp_path, "MI300X"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| tests | **FAIL** | 6 passed, 1 failed, 2 skipped |" in said
    assert "| parity | PASS |  |" in said
    assert "| GSM8K | **REGRESSION** | worse \\| by 2 points |" in said
    assert "| throughput | **broken** | throughput.json: " in said
