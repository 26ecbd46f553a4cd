"""Catches a command that cannot say what it is, or ends in a traceback, where nothing is installed.

Each command of the project is started from another folder by a Python without any package: with
--help, and with no argument. The commands are found in the tree.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ci import entry

ROOT = Path(__file__).resolve().parents[2]
GUARD = re.compile(r'^if __name__ == "__main__":', re.M)
NO_CODE = ("build", ".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache")
# What no person starts, and who does.
PARTS = {
    "ci/regression/guard.py": "servers.py",
    "tests/bench/once_each.py": "test_bench.py",
    "tests/engine/checkpoints.py": "itself, for a process of its own",
    "tests/kernels/aot.py": "itself, for a process of its own",
    "tests/platform/bin/ld.lld": "Triton",
    "tests/platform/bin/rocminfo": "aiter",
    "tests/platform/nursery.py": "arm.py",
    "tests/platform/worker.py": "arm.py",
    "tests/regression/serving/bench_serving.py": "ci/throughput.py, as sglang's",
    "tests/regression/serving/launch_server.py": "ci/gsm8k.py, as sglang's",
    "tests/regression/stub.py": "test_gsm8k_cli.py, as sglang's",
    "tests/regression/toy.py": "itself, for a process of its own",
}


def startable(root: Path) -> set[str]:
    found = set()
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if not path.is_file() or any(part in NO_CODE for part in parts):
            continue
        if path.suffix == ".py":
            is_one = GUARD.search(path.read_text()) is not None
        else:
            is_one = os.access(path, os.X_OK)
        if is_one and not parts[-1].startswith("test_"):
            found.add("/".join(parts))
    return found


COMMANDS = sorted(startable(ROOT) - PARTS.keys())


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A copy of the checkout, which no command may harm, and a Python without packages."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(ROOT, folder / "house", ignore=shutil.ignore_patterns(*NO_CODE))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (folder / "elsewhere").mkdir()
    # .ci/run installs these two where they are not.
    for name in ("chromedriver", "buildah"):
        (folder / "venv/bin" / name).touch(mode=0o755)
    return folder


def start(bare: Path, command: str, *arguments: str) -> subprocess.CompletedProcess:
    python = bare / "venv/bin/python3"
    if not command.endswith(".py"):
        words = [bare / "house" / command]
    elif command.startswith(("tests/", "ci/regression/")):
        module = command.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
        words = [python, "-m", module]
    else:
        words = [python, bare / "house" / command]
    environment = {
        "PATH": f"{bare}/venv/bin:/usr/bin:/bin",
        "HOME": str(bare / "elsewhere"),
        "PYTHONPATH": str(bare / "house"),
        # ci/test and .ci/run would make an environment and then run this test.
        "PYTHON": str(bare / "no-python"),
    }
    return subprocess.run(
        [*words, *arguments], cwd=bare / "elsewhere", env=environment, capture_output=True,
        text=True, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_is(command, bare):
    done = start(bare, command, "--help")
    assert done.returncode == entry.DONE, done.stdout + done.stderr
    assert len(done.stdout.split()) > 5
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_in_a_sentence(command, bare):
    done = start(bare, command)
    said = done.stdout + done.stderr
    assert done.returncode in (entry.DONE, entry.WRONG, entry.REFUSED), said
    assert "Traceback" not in said
    assert said.strip() or done.returncode == entry.DONE
    if re.search(r" has no (torch|triton|tilelang|jinja2)", said):
        assert "source ci/environment.sh" in said


def test_the_commands_are_those_of_the_tree(tmp_path):
    """So that a new one is started as well, and no part is named that is none."""
    assert startable(ROOT) >= PARTS.keys()
    assert {"apply.py", "ci/test", "bench/run.py", "tests/faults/__main__.py"} <= set(COMMANDS)
    (tmp_path / "new.py").write_text('if __name__ == "__main__":\n    raise ValueError\n')
    (tmp_path / "new").touch(mode=0o755)
    assert startable(tmp_path) == {"new.py", "new"}


# What all share --------------------------------------------------------------------------------


def ended(capsys, does):
    code = entry.run("name", does)
    return code, capsys.readouterr().err


def raising(error):
    def does():
        raise error

    return does


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (entry.Stop("there is no tree"), entry.REFUSED, "name: there is no tree\n"),
        (entry.Stop("apart", entry.WRONG), entry.WRONG, "name: apart\n"),
        (KeyboardInterrupt(), entry.INTERRUPTED, "name: interrupted\n"),
        (
            ModuleNotFoundError(name="torch.fx"),
            entry.REFUSED,
            "has no torch: source ci/environment",
        ),
        (ValueError("mine"), entry.FAILED, "ValueError: mine"),
    ],
)
def test_an_end_has_its_code_and_its_sentence(error, code, said, capsys):
    found, told = ended(capsys, raising(error))
    assert found == code
    assert said in told
    assert ("Traceback" in told) == (code == entry.FAILED)


def test_a_reader_that_leaves_is_no_traceback(bare):
    """As `| head` does."""
    program = (
        "import sys; from ci import entry\n"
        "def main():\n    for _ in range(99999): print('a line')\n    return 0\n"
        "sys.exit(entry.run('name', main))"
    )
    command = f'"{sys.executable}" -c "$PROGRAM" | head -1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command], env=os.environ | {"PROGRAM": program}, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"a line\n{entry.UNREAD}\n", "")


# ci/test ---------------------------------------------------------------------------------------


@pytest.fixture
def suite(tmp_path):
    """ci/test whose linters are content and whose pytest ends as $PYTEST says."""
    (tmp_path / "ci").mkdir()
    shutil.copy(ROOT / "ci/test", tmp_path / "ci")
    (tmp_path / "patches/1.0").mkdir(parents=True)
    (tmp_path / "patches/1.0/series").touch()
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("ruff", "mypy", "hadolint", "shellcheck", "actionlint"):
        (tools / name).symlink_to("/bin/true")
    python = '#!/bin/sh\ncase "$*" in *pytest*) echo "$*"; exit "$PYTEST" ;; esac\n'
    (tools / "python3").write_text(python)
    (tools / "python3").chmod(0o755)
    (tmp_path / "ci/environment.sh").write_text(f'PATH="{tools}:$PATH"\n')
    return tmp_path / "ci/test"


def run_suite(suite, *arguments, ends=0):
    environment = os.environ | {"PYTEST": str(ends)}
    return subprocess.run(
        [suite, *arguments], env=environment, cwd="/", capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("by_pytest", "code"),
    [(0, entry.DONE), (1, entry.WRONG), (2, entry.WRONG), (3, entry.FAILED), (4, entry.REFUSED)],
)
def test_red_is_1_however_pytest_stopped(by_pytest, code, suite):
    """At -x it ends with 2, which is wrong usage for us."""
    done = run_suite(suite, "--", "-x", ends=by_pytest)
    assert done.returncode == code, done.stderr
    assert done.stdout.rstrip().endswith("-x")


def test_an_empty_selection_is_named(suite):
    done = run_suite(suite, "--", "-k", "nothing", ends=5)
    assert done.returncode == entry.REFUSED
    assert "no test is selected by: -m not long -k nothing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--platform",), "--platform needs one of: rocm cuda cpu"),
        (("--platform", "tpu"), "--platform needs one of: rocm cuda cpu"),
        (("--release", "9.9"), "--release needs one of: 1.0"),
        (("--fast",), "unknown argument '--fast'; see ci/test --help"),
    ],
)
def test_wrong_usage_is_told_before_an_environment_is_made(arguments, said, suite):
    (suite.parent / "environment.sh").write_text("echo an environment\n")
    done = run_suite(suite, *arguments)
    assert (done.returncode, done.stdout) == (entry.REFUSED, "")
    assert said in done.stderr
