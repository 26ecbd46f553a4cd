"""Catches a workflow whose steps call scripts by names or flags that they do not have."""

import argparse
import fnmatch
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from ci.regression import decide
from ci.regression.exits import INCONCLUSIVE
from tests.image.layout import stub
from tests.platform import emulation, trees
from tests.platform.trees import ROOT
from tests.platform.value import Platform
from tests.regression import drawn

WORKFLOWS = ROOT / ".github/workflows"
GPUS = {f"card{i}": {"VRAM Total Used Memory (B)": str(300 << 20)} for i in range(8)}
AGENT = "  Name:                    gfx942\n  ISA:  amdgcn-amd-amdhsa--gfx942:sramecc+:xnack-"
RUNNERS = ("--gfx942-runner", '["mi300"]', "--gfx950-runner", '["mi35x"]')
# ci/test has just run these on the same files.
LINTERS = ("ruff", "mypy", "hadolint", "shellcheck", "actionlint")
JUST_RUN = ("tools/lint.py", "tools/export.py")


def workflow(name: str) -> dict:
    return yaml.safe_load((WORKFLOWS / name).read_text())


def rocminfo(folder: Path, agents: int) -> dict[str, str]:
    """A machine whose container may use so many GPUs."""
    return stub(folder, "rocminfo", "cat <<X\n" + "\n".join([AGENT] * agents) + "\nX")


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
    # The environments of a GPU are there and up to date; test_environment.py makes one.
    for path in (copy / "ci").glob("requirements-*.txt"):
        path.write_text("")
    lists = ["ci/requirements-tools.txt", "ci/requirements-build.txt"]
    for name in ("environment-rocm", "environment-rocm-accuracy"):
        (copy / "build" / name).mkdir(parents=True)
        made = {"python": platform.python_version(), "torch": [], "lists": dict.fromkeys(lists, "")}
        (copy / "build" / name / "stamp").write_text(json.dumps(made))
        lists.append("ci/requirements-accuracy.txt")
    for name in ("pristine", "trees"):
        (copy / "build" / name).symlink_to(ROOT / "build" / name)
    # Compiling the environment's packages anew is most of a start of pytest.
    for name in ("stdlib", "purelib"):
        compiled = Path("build/bytecode", sysconfig.get_path(name).lstrip("/"))
        (ROOT / compiled).mkdir(parents=True, exist_ok=True)
        (copy / compiled).parent.mkdir(parents=True, exist_ok=True)
        (copy / compiled).symlink_to(ROOT / compiled)
    for name in JUST_RUN:
        (copy / name).write_text("")
    return copy


@pytest.fixture
def machine(tmp_path) -> dict[str, str]:
    """The environment of a runner's steps: docker, rocm-smi and linters are stood in for."""
    tree = trees.patched_tree("0.5.10.post1")
    emulated = emulation.environment(Platform("cpu", "gfx942"), tree)
    stub(tmp_path / "bin", "docker", f'exec {sys.executable} -m tests.image.docker "$@"')
    stub(tmp_path / "bin", "rocm-smi", f"echo '{json.dumps(GPUS)}'")
    rocminfo(tmp_path / "bin", 8)
    for linter in LINTERS:
        stub(tmp_path / "bin", linter, "exit 0")
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
        # With nothing to install, pip still compares all packages and looks for a newer pip.
        "PIP_NO_DEPS": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTEST_ADDOPTS": "-p tests.image.emulated --collect-only tests/tool/test_diff.py",
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


def is_for(step: dict, asked: str) -> bool:
    """Whether a job that is asked for some steps has this one."""
    part = re.search(r"contains\(matrix\.steps, '(\w+)'\)", str(step.get("if")))
    return part is None or part[1] in asked.split()


def as_by_hand(text: str) -> str:
    """A workflow's text with what a start by hand has in its form, where a tag has nothing."""
    inputs = yaml.safe_load(text)[True]["workflow_dispatch"]["inputs"]
    for name, asked in inputs.items():
        text = re.sub(rf"inputs\.{name} \|\| '[^']*'", f"'{asked['default']}'", text)
    return text


def run_steps(
    job: dict, known: dict[str, str], checkout: Path, machine: dict[str, str], code: int = 0
) -> list[str]:
    """Run each script of a job as the runner does, the last of them to end with `code`; the names
    of the steps that it ran."""
    ran = []
    last = [step for step in job["steps"] if "run" in step][-1]
    for step in job["steps"]:
        if "run" not in step or not is_for(step, known.get("matrix.steps", "")):
            continue
        given = {**job.get("env", {}), **step.get("env", {})}
        given = {name: filled(text, known) for name, text in given.items()}
        assert "${{" not in step["run"], f"{step['name']}: pass values by env, not into the script"
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command, cwd=checkout, env=machine | given, capture_output=True, text=True
        )
        expected = code if step is last else 0
        assert done.returncode == expected, f"{step['name']}\n{done.stdout}\n{done.stderr}"
        ran.append(step["name"])
    return ran


KNOWN = {"github.run_id": "7", "github.run_attempt": "1", "strategy.job-index": "0"} | {
    "strategy.job-total": "76"
}


def planned(job: dict, checkout: Path, machine: dict[str, str]) -> list[dict]:
    assert run_steps(job, {}, checkout, machine) == ["Choose the jobs"]
    said = Path(machine["GITHUB_OUTPUT"]).read_text()
    return json.loads(said.removeprefix("matrix="))["include"]


def test_a_tag_starts_few_jobs_in_which_every_slug_runs(checkout, machine):
    from ci.regression.presets import preset

    rows = planned(workflow("amd.yml")["jobs"]["plan"], checkout, machine)
    assert len(rows) <= 16
    for release in trees.RELEASES:
        for arch in ("gfx942", "gfx950"):
            jobs = [row for row in rows if (row["release"], row["arch"]) == (release, arch)]
            assert {row["slug"] for row in jobs} == {""}  # all of them on
            runs = {slug for row in jobs for slug in preset(row["preset"], release, arch).slugs}
            assert runs == set(trees.slugs(release))


@pytest.mark.slow
def test_each_amd_step_runs_with_the_flags_that_its_scripts_have(checkout, machine, tmp_path):
    jobs = yaml.safe_load(as_by_hand((WORKFLOWS / "amd.yml").read_text()))["jobs"]
    rows = planned(jobs["plan"], checkout, machine)
    assert len(rows) == len(matrix("--rocms", "7.2"))
    rows = [row | {"arch": "gfx942"} for row in rows if row["release"] == "0.5.10.post1"]
    accuracy = next(row for row in rows if row["steps"] == "tests parity gsm8k")
    speed = next(r for r in rows if (r["steps"], r["slug"]) == ("throughput", "indexer"))
    job, ran = jobs["compare"], []
    for row in (accuracy, speed):
        known = KNOWN | {f"matrix.{name}": text for name, text in row.items()}
        steps = [step for step in job["steps"] if step.get("name") not in ran]
        ran += run_steps(job | {"steps": steps}, known, checkout, machine)
    assert set(ran) == {step["name"] for step in job["steps"] if "run" in step}
    summary = (tmp_path / "summary.md").read_text()
    # Tests that were only collected did not pass.
    assert "| tests | **FAIL** | 0 passed" in summary
    assert "| GSM8K | not run |" in summary
    assert "throughput" not in summary, "no part of this job"
    image, container = "sglang-rocm-patches:7-1-0", "--name rocm-patches-7-1-0 "
    log = (tmp_path / "docker.log").read_text().splitlines()
    assert next(line for line in log if line.startswith("build ")).endswith(f"--tag {image} .")
    started = [line for line in log if container in line]
    assert len(started) == 6
    assert all(f" {image} " in line for line in started)
    removed = log.index("container rm --force rocm-patches-7-1-0", log.index(started[4]) + 1)
    assert log.index(f"image rm --force {image}") > removed
    evidence = checkout / "results/evidence"
    assert {path.name for path in (checkout / "evidence").iterdir()} == set(os.listdir(evidence))


def test_a_job_of_one_slug_names_it_to_every_script(checkout, machine, tmp_path):
    job = workflow("amd.yml")["jobs"]["compare"]
    chosen = ("Build the image", "Compare tokens", "Compare accuracy", "Compare throughput")
    steps = [step for step in job["steps"] if step.get("name", "").startswith(chosen)]
    assert len(steps) == len(chosen)
    for row in matrix("--releases", "0.5.10.post1", "--rocms", "7.2"):
        if row["slug"] == "indexer" and row["arch"] == "gfx942":
            known = KNOWN | {f"matrix.{name}": text for name, text in row.items()}
            noted = machine | {"DOCKER_NOTES_ONLY": "1"}
            run_steps(job | {"steps": steps}, known, checkout, noted)
    log = (tmp_path / "docker.log").read_text()
    assert log.count("--build-arg SLUGS=indexer") == 2
    assert log.count("--slugs indexer") == 3


def test_the_accuracy_of_all_jobs_is_judged_together(checkout, machine, tmp_path):
    """Two regressions of one in twenty each, which Holm takes back, and a job with no result."""
    job = workflow("amd.yml")["jobs"]["accuracy"]
    assert job["needs"] == ["plan", "compare"]
    rows = [row for row in matrix() if "gsm8k" in row["steps"]]
    shutil.rmtree(checkout / "results", ignore_errors=True)
    clean = [drawn.run(f"run {number}") for number in range(2)]
    lossy = [drawn.run(f"run {number}", range(13)) for number in range(2)]
    for number, row in enumerate(rows[1:]):
        found = decide.decide(clean, lossy if number < 2 else clean)
        assert found.verdict == ("REGRESSION" if number < 2 else "PASS")
        result = found.as_json() | {"ledger": {"folder": row["name"]}}
        path = checkout / "results" / f"results-{row['name']}" / "gsm8k.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))
    known = {"needs.plan.outputs.matrix": json.dumps({"include": matrix()})}
    ran = run_steps(job, known, checkout, machine, code=INCONCLUSIVE)
    assert ran == ["Install what the verdict needs", "Judge the accuracy of all jobs together"]
    said = (tmp_path / "summary.md").read_text()
    assert f"**INCONCLUSIVE**: INCONCLUSIVE in 2 of {len(rows) - 1} configurations" in said
    assert f"| {rows[1]['name']} | INCONCLUSIVE | " in said
    assert f"- **no result**: {rows[0]['name']}" in said


def test_jobs_without_a_result_do_not_pass(tmp_path):
    row = {"name": "one", "steps": "parity gsm8k"}
    command = [sys.executable, ROOT / "ci/amd/verdict.py", tmp_path, json.dumps({"include": [row]})]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 4
    assert "- **no result**: one" in done.stdout
    done = subprocess.run([*command[:-1], "{}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "MATRIX is not what ci/amd/matrix.py says" in done.stderr


def test_the_cpu_workflow_runs_ci_test_and_tells_of_nothing_else(checkout, machine, tmp_path):
    job = workflow("cpu.yml")["jobs"]["test"]
    [test, _summary] = [step["run"] for step in job["steps"] if "run" in step]
    assert test.startswith("ci/test ")
    told_only = {test: f"echo {test} >>ran"}
    steps = [s | {"run": told_only.get(s["run"], s["run"])} for s in job["steps"] if "run" in s]
    for row in job["strategy"]["matrix"]["include"]:
        known = {f"matrix.{name}": text for name, text in row.items()}
        run_steps(job | {"steps": steps}, known, checkout, machine)
    assert (checkout / "ran").read_text().splitlines() == [
        "ci/test -- --junitxml=results/tests.xml",
        "ci/test --long -- --junitxml=results/long.xml",
    ]
    told = (tmp_path / "summary.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in told if " | not run" in line] == [
        "| tests", "| long tests",
    ]  # fmt: skip


# What keeps a workflow from doing harm -----------------------------------------------------------


@pytest.mark.parametrize("name", ["amd.yml", "cpu.yml"])
def test_a_workflow_can_read_and_nothing_else_and_ends(name):
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    assert "concurrency" in found
    for job in found["jobs"].values():
        rows = (
            job.get("strategy", {"matrix": {}})["matrix"].get("include", [])
            if name == "cpu.yml"
            else []
        )
        for limit in [row["minutes"] for row in rows] or [job["timeout-minutes"]]:
            assert limit <= 720
        assert "permissions" not in job
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_job_has_the_time_of_all_of_its_steps():
    job = workflow("amd.yml")["jobs"]["compare"]
    for asked in {row["steps"] for row in matrix()}:
        limits = [step.get("timeout-minutes", 0) for step in job["steps"] if is_for(step, asked)]
        assert sum(limits) + 30 <= job["timeout-minutes"], asked


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
    from ci.regression.presets import preset

    rows = matrix("--rocms", "7.0,7.2")
    assert len({row["name"] for row in rows}) == len(rows)
    for release in trees.RELEASES:
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
        for release in trees.RELEASES
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
    command = [sys.executable, ROOT / "ci/amd/matrix.py", *RUNNERS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
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
    stub(tmp_path / "bin", "rocm-smi", f"echo '{json.dumps(gpus)}'")
    environment = os.environ | rocminfo(tmp_path / "bin", 4)
    command = [sys.executable, ROOT / "ci/amd/gpus.py", "--arch", "gfx942", "--wait", "0"]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
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
    steps = "tests parity gsm8k throughput long"
    command = [sys.executable, ROOT / "ci/amd/summary.py", tmp_path, "MI300X", steps]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| tests | **FAIL** | 6 passed, 1 failed, 2 skipped |" in said
    assert "| parity | PASS |  |" in said
    assert "| GSM8K | **REGRESSION** | worse \\| by 2 points |" in said
    assert "| throughput | **broken** | throughput.json: " in said
    assert "| long tests | not run |  |" in said
