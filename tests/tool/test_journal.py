"""Catches a tree left between two states: by a kill, a signal, a full disk, a rival."""

import contextlib
import errno
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patchset import staging
from patchset.folder import Folder
from patchset.journal import FOLDER, Journal
from tests.tool.synthetic import LAID, PRISTINE, RECORD, content, synthetic_tree

KILLER = Path(__file__).with_name("killer.py")
POOL = "sglang/srt/pool.py"


def whole(house, tree):
    """The bytes of `tree` with everything on."""
    copy = tree.with_name("whole")
    shutil.copytree(tree, copy)
    assert house.ask("apply", "--tree", copy).code == 0
    return content(copy)


# Kills ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [12, pytest.param(120, marks=pytest.mark.slow)])
def test_nothing_is_lost_when_a_move_is_killed_at_any_instant(kills, house, seed):
    house.installed()
    synthetic_tree(house.home / "tree")
    states = ["", "norm,index", "norm,index,rope,rope-store"]
    command = [sys.executable, "-I", KILLER, house.home, str(seed), str(kills), *states]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(result)
    assert result["lost"] == []
    assert result["hits"] >= kills
    assert kills < 100 or {"finished", "undone"} <= result["ends"].keys()


def cut_short(house, tree, instant, *argv):
    """Run a command in a process that dies at its first call of `instant` of a Step."""
    child = os.fork()
    if child == 0:
        setattr(staging.Step, instant, lambda *_: os._exit(9))
        house.run(*argv, "--tree", tree)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_status_says_what_was_interrupted_and_verify_fails(house, tree):
    cut_short(house, tree, "finish", "apply", "norm")
    assert (tree / FOLDER / "plan.json").exists()
    reply = house.ask("status", "--tree", tree)
    assert "`apply norm` was interrupted" in reply.shown["message"]
    assert house.ask("verify", "--tree", tree).code == 1


def test_a_run_that_was_ready_is_finished_although_the_next_one_asks_for_less(house, tree):
    cut_short(house, tree, "finish", "apply", "norm")
    reply = house.ask("apply", "rope", "--tree", tree)
    assert "`apply norm` was found and finished" in reply.shown["message"]
    assert [s for s, now in reply.shown["state"].items() if now == "on"] == ["norm", "rope"]
    assert not (tree / FOLDER).exists()


def test_a_run_whose_tree_was_replaced_since_is_given_up(house, tree):
    before = content(tree)
    cut_short(house, tree, "finish", "apply")
    (tree / POOL).write_text("another release, installed over it\n")
    reply = house.ask("apply", "--tree", tree)
    assert reply.code == 1
    assert content(tree) == {**before, POOL: b"another release, installed over it\n"}


def test_a_staged_file_that_is_damaged_is_not_renamed_into_the_tree(house, tree):
    asked = whole(house, tree)
    cut_short(house, tree, "finish", "apply")
    staged = tree / "sglang/srt/.pool.py.rocm_patches"
    assert staged.read_bytes() == asked[POOL]
    staged.write_bytes(staged.read_bytes()[:-1])
    reply = house.ask("apply", "--tree", tree)
    assert f"given up, because {tree / POOL} has changed since" in reply.shown["message"]
    assert content(tree) == asked


def test_a_dry_run_leaves_an_interrupted_run_as_it_is(house, tree):
    cut_short(house, tree, "finish", "apply")
    before = content(tree)
    assert house.ask("apply", "--dry-run", "--tree", tree).code == 0
    assert content(tree) == before


# Signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("call", [1, 5, 20, 26])
def test_a_signal_while_files_are_staged_leaves_the_tree_as_before(
    number, call, house, tree, monkeypatch
):
    before = content(tree)
    calls = iter(range(1, 1000))
    create = Folder.create

    def interrupted(*args, **words):
        create(*args, **words)
        if next(calls) == call:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Folder, "create", interrupted)
    reply = house.ask("apply", "--tree", tree)
    assert reply.code == 130
    assert reply.shown["status"] == "pristine"
    assert content(tree) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_while_files_are_renamed_leaves_the_tree_as_asked(
    number, house, tree, monkeypatch
):
    asked = whole(house, tree)
    finish = staging.Step.finish

    def interrupted(step):
        os.kill(os.getpid(), number)
        finish(step)

    monkeypatch.setattr(staging.Step, "finish", interrupted)
    reply = house.ask("apply", "--tree", tree)
    assert reply.code == 130
    assert reply.shown["status"] == "patched"
    assert content(tree) == asked


def test_ctrl_c_on_the_real_process_never_shows_a_traceback(house, seed):
    house.installed()
    tree = synthetic_tree(house.home / "tree")
    codes = set()
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-I", house.home / "apply.py", "apply", "--tree", tree],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        # Python itself answers a signal that comes before the script's first line.
        time.sleep(random.uniform(0.06, 0.2))
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1].decode()
        assert not re.search(r'apply\.py", line [1-9]', errors), errors
        if "Fatal Python error" not in errors:
            codes.add(process.returncode)
        assert house.ask("revert", "--tree", tree).code == 0
        assert not (tree / FOLDER).exists()
    assert codes <= {0, 130, -signal.SIGINT}


# Rivals ---------------------------------------------------------------------------------------


def test_two_writers_at_once_take_turns(house, seed):
    house.installed()
    tree = synthetic_tree(house.home / "tree")
    before = content(tree)
    asked = whole(house, tree)
    for _ in range(5):
        verbs = [["apply"], ["revert"], ["apply", "norm"], ["revert", "rope-store"]]
        running = [
            subprocess.Popen(
                [sys.executable, "-I", house.home / "apply.py", *verb, "--tree", tree, "--json"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for verb in random.sample(verbs, 4)
        ]
        for process in running:
            out, errors = process.communicate(timeout=60)
            assert process.returncode == 0, (out, errors)
        assert house.ask("status", "--tree", tree).shown["status"] in ("patched", "pristine")
        assert not (tree / FOLDER).exists()
    house.ask("apply", "--tree", tree)
    assert content(tree) == asked
    house.ask("revert", "--tree", tree)
    assert content(tree) == before


def test_what_the_next_writer_does_is_not_blamed_on_this_one(house, tree, monkeypatch):
    held = Journal.held

    @contextlib.contextmanager
    def and_then_a_rival(self, tell):
        with held(self, tell) as run:
            yield run
        monkeypatch.setattr(Journal, "held", held)
        assert house.ask("revert", "--tree", tree).code == 0

    monkeypatch.setattr(Journal, "held", and_then_a_rival)
    reply = house.ask("apply", "--tree", tree)
    assert (reply.code, reply.shown["status"]) == (0, "patched")
    assert house.ask("status", "--tree", tree).shown["status"] == "pristine"


def test_a_writer_waits_and_says_for_whom_while_readers_never_wait(house):
    house.installed()
    tree = synthetic_tree(house.home / "tree")
    (tree / FOLDER).mkdir()
    with (tree / FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 4711")
        lock.flush()
        writer = subprocess.Popen(
            [sys.executable, "-I", house.home / "apply.py", "apply", "--tree", tree],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = writer.stderr.readline()
        assert line == f"apply.py: waiting for process 4711, which is changing {tree / 'sglang'}\n"
        for reader in (["status"], ["verify"], ["apply", "--dry-run"]):
            assert house.ask(*reader, "--tree", tree).shown["status"] == "pristine"
        assert writer.poll() is None
    assert writer.wait(timeout=60) == 0
    writer.stderr.close()
    assert house.ask("verify", "--tree", tree).code == 0
    assert not (tree / FOLDER).exists()


# Disks ----------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("free", range(0, 150, 10))
@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_on_a_full_disk_the_tree_is_as_before_or_as_asked(verb, free, house, disk):
    tree = synthetic_tree(disk / "tree")
    pristine, patched = content(tree), whole(house, tree)
    shutil.rmtree(disk / "whole")
    if verb == "revert":
        house.ask("apply", "--tree", tree)
    before, asked = (pristine, patched) if verb == "apply" else (patched, pristine)
    room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(max(room - free * 1024, 0)))
    reply = house.ask(verb, "--tree", tree)
    if reply.code:
        assert "No space left on device" in reply.shown["message"]
        assert "the tree is as it was before" in reply.shown["message"]
        assert free < 140
    assert content(tree) == (before if reply.code else asked)
    (disk / "filler").unlink()
    assert house.ask(verb, "--tree", tree).code == 0
    assert content(tree) == asked


def test_a_file_system_that_takes_no_more_bytes_of_a_file_leaves_the_tree_as_before(house):
    house.installed()
    tree = synthetic_tree(house.home / "tree")
    before = content(tree)
    for limit in (0, 100, 300, 500):
        done = subprocess.run(
            [sys.executable, "-IB", house.home / "apply.py", "apply", "--tree", tree],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda limit=limit: resource.setrlimit(
                resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)
            ),
        )
        assert done.returncode == 1
        assert "File too large" in done.stderr
        assert content(tree) == before


def test_a_read_only_mount_is_refused_for_writers_and_fine_for_readers(house, disk):
    tree = synthetic_tree(disk / "tree")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    reply = house.ask("apply", "--tree", tree)
    assert reply.code == 1
    assert "Read-only file system" in reply.shown["message"]
    assert "--tree" in reply.shown["message"]
    for argv in (["status"], ["apply", "--dry-run"], ["revert"]):
        assert house.ask(*argv, "--tree", tree).code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_tree_of_another_user_is_refused_with_advice(house, tree):
    before = content(tree)
    for folder in (tree.parent, tree):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        reply = house.ask("apply", "--tree", tree)
    finally:
        os.seteuid(0)
    assert reply.code == 1
    assert "Permission denied" in reply.shown["message"]
    assert "become the owner of the tree" in reply.shown["message"]
    assert content(tree) == before


def test_a_file_that_is_mounted_by_itself_is_named_and_the_others_are_put_back(house, tree, disk):
    before = content(tree)
    subprocess.run(["mount", "--bind", tree / POOL, tree / POOL], check=True)
    try:
        reply = house.ask("apply", "--tree", tree)
    finally:
        subprocess.run(["umount", tree / POOL], check=True)
    assert reply.code == 1
    assert str(tree / POOL) in reply.shown["message"]
    assert "mounted by itself" in reply.shown["message"]
    assert content(tree) == before


@pytest.mark.parametrize("good", range(0, 18, 3))
def test_a_rename_that_fails_undoes_those_before_it(good, house, tree, monkeypatch):
    before = content(tree)
    left = iter(range(good))
    rename = Folder.rename

    def failing(self, name, new, into=None):
        if name.endswith(".rocm_patches") and next(left, None) is None:
            monkeypatch.setattr(Folder, "rename", rename)
            raise OSError(errno.EIO, "Input/output error", str(self.path / new))
        return rename(self, name, new, into)

    monkeypatch.setattr(Folder, "rename", failing)
    reply = house.ask("apply", "--tree", tree)
    assert reply.code == 1
    assert "Input/output error; the tree is as it was before" in reply.shown["message"]
    assert content(tree) == before
    assert not (tree / LAID).exists()


def test_an_undo_that_fails_too_is_told_and_done_by_the_next_command(house, tree, monkeypatch):
    house.ask("apply", "--tree", tree)
    before = content(tree)
    left = iter(range(3))
    rename = Folder.rename

    def failing(self, name, new, into=None):
        if name.endswith(".rocm_patches") and next(left, None) is None:
            raise OSError(errno.EIO, "Input/output error", str(self.path / new))
        return rename(self, name, new, into)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "rename", failing)
        reply = house.ask("revert", "--tree", tree)
    assert reply.code == 1
    assert str(tree / FOLDER) in reply.shown["message"]
    reply = house.ask("apply", "--tree", tree)
    assert "`revert` was found and undone" in reply.shown["message"]
    assert content(tree) == before


def test_nothing_of_the_journal_is_left_in_record_or_tree(house, tree):
    house.ask("apply", "--tree", tree)
    names = {file.name for file in tree.rglob("*")}
    assert FOLDER not in names
    assert not [name for name in names if name.endswith(".rocm_patches")]
    assert FOLDER not in (tree / RECORD).read_text()
    assert set(PRISTINE) < content(tree).keys()
