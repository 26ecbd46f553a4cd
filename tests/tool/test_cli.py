"""Catches a command line that breaks its contract: exit codes, one JSON object, no traceback."""

import ast
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from patchset import VERSION
from tests.tool.synthetic import RECORD, ROOT, content, synthetic_tree

COMMANDS = ("apply", "revert", "status", "verify", "list", "export")
KEYS = {"release", "tree", "state", "status", "digest", "files", "changed", "message"}
STATUSES = {"pristine", "patched", "partial", "drifted", "unknown-release"}


def python(version):
    """An interpreter of this version, None where none is installed."""
    pyenv = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for candidate in filter(None, [shutil.which(f"python{version}"), *pyenv]):
        # A pyenv shim is on PATH for versions that it then refuses to run.
        asked = [candidate, "-c", "import sys; print(sys.executable)"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_every_command_runs_isolated_without_git_on_every_python(version, house, tree):
    executable = python(version)
    if executable is None:
        pytest.skip(f"no Python {version} is installed")
    house.installed()
    before = content(tree)

    def run(*argv):
        return subprocess.run(
            [executable, "-I", house.home / "apply.py", *argv],
            cwd="/",
            env={"PATH": "/nonexistent"},
            capture_output=True,
            check=True,
        ).stdout

    assert b"0 of 4 slugs on" in run("status", "--tree", tree)
    run("apply", "--tree", tree)
    assert b"every byte is right" in run("verify", "--tree", tree)
    run("revert", "--tree", tree)
    assert content(tree) == before
    assert b"What norm does" in run("list")
    assert b"diff --git" in run("export", "--release", "1.0")


def test_only_the_standard_library_is_imported():
    for module in [ROOT / "apply.py", *(ROOT / "patchset").glob("*.py")]:
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] in {*sys.stdlib_module_names, "patchset"}, module


def replies(house, tree):
    (tree.parent / "unknown").mkdir()
    unknown = synthetic_tree(tree.parent / "unknown", {"sglang/srt/pool.py": b"new\n"})
    where = ("--tree", tree)
    yield 0, house.ask("status", *where)
    yield 1, house.ask("verify", *where)
    yield 0, house.ask("apply", "--dry-run", *where)
    yield 0, house.ask("apply", *where)
    yield 0, house.ask("verify", *where)
    yield 1, house.ask("revert", "norm", *where)
    yield 0, house.ask("revert", *where)
    yield 0, house.ask("revert", *where)
    yield 0, house.ask("list")
    yield 0, house.ask("export", "--release", "1.0")
    yield 0, house.ask("status", "--tree", unknown)
    yield 1, house.ask("apply", "--tree", unknown)
    yield 1, house.ask("apply", "--tree", "/nonexistent")
    yield 2, house.ask("apply", "no-such-slug", *where)
    yield 2, house.ask("apply", "self-report", *where)
    yield 2, house.ask("no-such-command")
    yield 2, house.ask("apply", "--force", *where)
    yield 2, house.ask("apply", *where, "--fetch", "1.0")
    yield 2, house.ask("status", "--dry-run", *where)
    yield 2, house.ask("export")
    yield 2, house.ask("apply", "--fetch", "../../etc")
    yield 2, house.ask("apply", "--tree", "")
    yield 2, house.ask("status", "--fetch", "")
    yield 1, house.ask("apply", "--fetch", "9.9")
    yield 1, house.ask("status", "--tree", tree / "sglang/srt/pool.py")
    yield 2, house.ask()


def test_every_command_answers_with_one_json_object_and_the_right_exit_code(house, tree):
    for number, (code, reply) in enumerate(replies(house, tree)):
        assert reply.code == code, (number, reply)
        assert reply.out.count("\n") == 1
        assert reply.shown.keys() >= KEYS
        assert reply.shown["message"] or code == 0
        assert reply.shown["status"] in {*STATUSES, None}
        assert reply.err == ""
        for file in reply.shown["files"]:
            assert file.keys() == {"path", "status", "found", "expected"}


def test_json_of_a_tree_names_its_files_with_full_blob_ids(house, tree):
    shown = house.ask("apply", "--tree", tree).shown
    assert shown["release"] == "1.0"
    assert shown["tree"] == str(tree / "sglang")
    assert len(shown["digest"]) == 64
    assert RECORD in shown["changed"]
    paths = {file["path"] for file in shown["files"]}
    assert paths >= set(shown["changed"])
    for file in shown["files"]:
        assert file["status"] == "right"
        assert file["found"] == file["expected"]
        assert len(file["found"]) == 40


def test_the_provenance_in_the_tree_has_the_digest_that_is_told(house, tree):
    shown = house.ask("apply", "norm", "--tree", tree).shown
    laid = json.loads((tree / "sglang/srt/rocm_patches/provenance.json").read_text())
    assert (laid["release"], laid["digest"]) == (shown["release"], shown["digest"])
    assert laid["slugs"] == ["norm"]
    (listed,) = house.ask("list").shown["releases"]
    assert listed["digest"] == shown["digest"]


@pytest.mark.parametrize(
    "change", ["patches/1.0/norm.patch", "overlay/sglang/srt/rocm_patches/rope.py"]
)
def test_the_digest_follows_every_patch_and_overlay_file(change, house):
    (before,) = house.ask("list").shown["releases"]
    file = house.home / change
    file.write_text(file.read_text().replace("rope.py", "rope, better").replace("Prose", "Verse"))
    (after,) = house.ask("list").shown["releases"]
    assert before["digest"] != after["digest"]


@pytest.mark.parametrize("option", ["--tree", "--fetch"])
def test_an_empty_path_is_not_the_imported_sglang(option, house, tree, monkeypatch):
    monkeypatch.syspath_prepend(tree)
    before = content(tree)
    assert house.ask("status").shown["tree"] == str(tree / "sglang")
    reply = house.ask("apply", option, "")
    assert reply.code == 2
    assert f"{option} is empty" in reply.shown["message"]
    assert content(tree) == before


def test_a_file_is_no_tree(house, tree):
    reply = house.ask("apply", "--tree", tree / "sglang/srt/pool.py")
    assert "pool.py is a file; --tree takes a folder" in reply.shown["message"]


def test_a_path_that_is_not_utf8_is_patched_and_told_like_any_other(house, tree):
    house.installed()
    odd = os.fsencode(tree.parent) + b"/tr\xffe"
    os.rename(tree, odd)
    script = [sys.executable, "-I", house.home / "apply.py"]
    for command in ("apply", "status", "verify"):
        done = subprocess.run([*script, command, "--tree", odd], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert odd in done.stdout
    done = subprocess.run([*script, "status", "--json", "--tree", odd], capture_output=True)
    assert os.fsencode(json.loads(done.stdout)["tree"]) == odd + b"/sglang"
    done = subprocess.run([*script, "verify", "norm", "--tree", odd], capture_output=True)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_verify_asks_for_exactly_the_named_slugs_and_what_they_require(house, tree):
    where = ("--tree", tree)
    assert house.ask("apply", "index", *where).code == 0
    assert house.ask("verify", "index", *where).code == 0
    assert house.ask("verify", "norm", "index", *where).code == 0
    beyond = house.ask("verify", "norm", *where)
    assert beyond.code == 1
    assert "on, but not asked for: index" in beyond.shown["message"]
    assert f"revert index --tree {tree}" in beyond.shown["message"]
    off = house.ask("verify", "index", "rope", *where)
    assert off.code == 1
    assert "off: rope" in off.shown["message"]
    assert f"apply index rope --tree {tree}" in off.shown["message"]
    assert house.ask("verify", *where).code == 1
    (tree / "sglang/srt/rocm_patches/norm.py").unlink()
    assert house.ask("verify", "index", *where).code == 1


def test_the_version_is_the_one_that_the_list_names(house):
    house.installed()
    argv = [sys.executable, "-I", house.home / "apply.py", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == f"rocm-patches {VERSION}\n"
    assert house.run("list").out.startswith(f"patch set {VERSION}, digest ")
    assert house.ask("list").shown["version"] == VERSION


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8", "3.9"])
def test_an_older_python_gets_one_sentence(version, house):
    """Compiled for that Python where it is here; otherwise told a version like it."""
    house.installed()
    executable, script = python(version), house.home / "apply.py"
    if executable is None:
        number = tuple(int(part) for part in version.split("."))
        lie = f"import sys; sys.version_info = {number}; sys.version = '{version}.1 (x)'; "
        argv = [sys.executable, "-c", f"{lie}exec(open({str(script)!r}).read())"]
    else:
        argv = [executable, script]
    done = subprocess.run([*argv, "list"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("apply.py needs Python 3.10 or newer; ")
    assert done.stderr.count("\n") == 1


def test_suggested_commands_name_the_python_that_runs_where_a_shell_finds_another(
    house, tree, monkeypatch, tmp_path
):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python3"))
    assert f"{tmp_path}/venv/bin/python3 " in house.ask("apply", "--tree", tree).shown["message"]
    (tree / "sglang/srt/pool.py").write_text("edited\n")
    pip = f"{tmp_path}/venv/bin/python3 -m pip install --force-reinstall --no-deps sglang==1.0"
    assert pip in house.ask("apply", "--tree", tree).shown["message"]
    monkeypatch.setenv("PATH", str(tmp_path / "venv/bin"))
    (tmp_path / "venv/bin").mkdir(parents=True)
    shutil.copy("/bin/true", tmp_path / "venv/bin/python3")
    assert "to see" not in house.ask("apply", "--tree", tree).shown["message"]
    message = house.ask("status", "--tree", tree).shown["message"]
    assert "\npython3 -m pip install" in message


def test_the_advice_about_edited_files_is_whole_and_comes_once(house, tmp_path):
    root = synthetic_tree(tmp_path / "checkout", record=False)
    house.ask("apply", "--tree", root)
    for path in ("srt/pool.py", "srt/server.py", "srt/rocm_patches/norm.py"):
        (root / "sglang" / path).write_text("edited\n")
    lines = house.ask("apply", "--tree", root).shown["message"].splitlines()
    advice = lines[lines.index("copy what you want to keep, then give up what differs:") - 1 :]
    files = f"{root}/sglang/srt/pool.py {root}/sglang/srt/server.py"
    assert advice == [
        f"to see what differs: git -C {root} diff v1.0 -- {files}",
        "copy what you want to keep, then give up what differs:",
        f"rm {root}/sglang/srt/rocm_patches/norm.py",
        f"git -C {root} checkout v1.0 -- {files}",
    ]


# What a person sees ---------------------------------------------------------------------------


def test_the_list_says_what_each_slug_needs(house):
    out = house.run("list").out
    assert "sglang 1.0 (same files: 1.0.post1)" in out
    assert "does     What index does" in out
    assert "requires norm" in out
    assert out.count("requires") == 1  # norm itself, and what requires nothing, have no such line


def test_every_command_can_be_quiet(house, tree):
    for argv in (["list"], ["export", "--release", "1.0"], ["status", "--tree", tree]):
        assert house.run(*argv, "--quiet") == (0, {}, "", "")


def test_quiet_prints_refusals_only(house, tree):
    assert house.run("apply", "--quiet", "--tree", tree)[2:] == ("", "")
    assert house.run("verify", "--quiet", "--tree", tree)[2:] == ("", "")
    reply = house.run("revert", "norm", "--quiet", "--tree", tree)
    assert reply.out == ""
    assert "index is on and requires norm" in reply.err


def test_refusals_go_to_stderr_and_name_the_command_that_helps(house, tree):
    reply = house.run("verify", "--tree", tree)
    assert reply.out == ""
    assert "off: norm, index, rope, rope-store" in reply.err
    assert f"apply --tree {tree}" in reply.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_of_every_command_fits_a_terminal_and_tells_the_exit_codes(command, house):
    house.installed()
    argv = [sys.executable, "-I", house.home / "apply.py", *command.split(), "--help"]
    env = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "exit codes: 0 done" in done.stdout


def test_tables_fit_a_terminal_whatever_the_subjects(house, tree):
    file = house.home / "patches/1.0/norm.patch"
    subject = "Subject: " + "a long story about LayerNorm " * 8
    file.write_text(file.read_text().replace("Subject: What norm does", subject))
    for argv in (["list"], ["apply", "--tree", tree], ["status", "--tree", tree]):
        out = house.run(*argv).out
        assert "about LayerNorm" in out
        for line in out.splitlines():
            assert len(line) <= 100 or str(tree) in line


def terminal(argv, env):
    """What the command writes to a terminal."""
    child, master = pty.fork()
    if child == 0:
        os.environ.update(env)
        os.execv(argv[0], argv)
    chunks = []
    try:
        while chunk := os.read(master, 4096):
            chunks.append(chunk)
    except OSError:  # the terminal is gone with its last user
        pass
    os.waitpid(child, 0)
    return b"".join(chunks)


@pytest.mark.parametrize(("env", "colour"), [({}, True), ({"NO_COLOR": ""}, False)], ids=str)
def test_colour_is_for_terminals_that_want_it(env, colour, house, tree):
    house.installed()
    argv = [sys.executable, "-I", str(house.home / "apply.py"), "status", "--tree", str(tree)]
    assert (b"\033[" in terminal(argv, env)) == colour
    assert b"\033[" not in subprocess.run(argv, capture_output=True, check=True).stdout
    assert b"\\u001b" not in terminal([*argv, "--json"], env)


def test_a_reader_that_goes_away_is_no_error(house):
    house.installed()
    argv = [sys.executable, "-I", house.home / "apply.py", "export", "--release", "1.0"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_ascii_terminals_get_their_table_too(house, tree):
    house.installed()
    file = house.home / "patches/1.0/norm.patch"
    file.write_text(file.read_text().replace("What norm does", "Wie sich's gehört"))
    argv = [sys.executable, "-I", house.home / "apply.py", "status", "--tree", tree]
    env = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(argv, capture_output=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_handler_of_the_callers_signals_is_not_changed_by_a_child(house, tree):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    house.run("status", "--tree", tree)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# A damaged patch set --------------------------------------------------------------------------


def damage(house, name, was, becomes):
    file = house.home / "patches/1.0" / name
    file.write_text(file.read_text().replace(was, becomes, 1))


@pytest.mark.parametrize(
    ("name", "was", "becomes", "says"),
    [
        ("norm.patch", "\n-norm = 10\n", "\n-norm = 1", "norm.patch: line"),
        ("norm.patch", "Requires: ", "Requires: nothing-known", "requires nothing-known"),
        ("series", "rope-store", "rope-stone", "rope-stone.patch does not exist"),
        ("series", "rope-store\n", "", "rope-store.patch is not named there"),
        ("release.json", "1.0", "1.1", "says release 1.1"),
        ("release.json", "{", "", "Extra data"),
        ("index.patch", "\nindex ", "\nindex 0", "needs a full `index"),
    ],
    ids=lambda value: value[:20],
)
def test_a_damaged_patch_set_is_refused_with_the_fault(name, was, becomes, says, house, tree):
    damage(house, name, was, becomes)
    reply = house.ask("apply", "--tree", tree)
    assert reply.code == 1
    assert says in reply.shown["message"]
    assert "git checkout -- patches overlay" in reply.shown["message"]


def test_patches_that_neighbour_each_other_are_refused_with_the_place(house, tree):
    edits = {"norm": {"sglang/srt/pool.py": {7: "n\n"}}, "rope": {"sglang/srt/pool.py": {8: "r\n"}}}
    house.release("1.0", edits=edits)
    reply = house.ask("apply", "--tree", tree)
    assert reply.code == 1
    assert "touch or neighbour each other at sglang/srt/pool.py:8" in reply.shown["message"]


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("+norm at the start", "+norm at the stars"),
        ("-norm = 10\n", "-norm = 01\n"),
        ("-norm = 1\n", "-norm = 2\n"),
    ],
    ids=["added", "removed", "replaced"],
)
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_patch_whose_line_was_changed_by_hand_moves_nothing(command, was, becomes, house, tree):
    if command == "revert":
        assert house.ask("apply", "--tree", tree).code == 0
    damage(house, "norm.patch", f"\n{was}", f"\n{becomes}")
    before = content(tree)
    reply = house.ask(command, *(["index"] if command == "revert" else []), "--tree", tree)
    assert reply.code == 1
    assert "do not make what they say of sglang/srt/layers/norm.py" in reply.shown["message"]
    assert content(tree) == before


def test_an_overlay_file_outside_its_folder_is_refused(house):
    (house.home / "overlay/sglang/elsewhere.py").touch()
    reply = house.ask("list")
    assert reply.code == 1
    assert "overlay/sglang/elsewhere.py lies outside" in reply.shown["message"]
