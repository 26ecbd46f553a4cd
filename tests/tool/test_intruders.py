"""Catches a tree, or what lies beside it, that makes the tool write elsewhere, stop or lie."""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import subprocess
import sys
import time

import pytest

from patchset import staging
from patchset.diff import blob_id
from patchset.journal import FOLDER
from patchset.plan import VERSION
from tests.tool.synthetic import LAID, PRISTINE, content
from tests.tool.test_journal import cut_short

POOL = "sglang/srt/pool.py"
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")


@contextlib.contextmanager
def nobody(tree):
    """As another user, who may come to the tree."""
    for folder in (tree.parent, tree):
        folder.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# A journal that somebody planted -----------------------------------------------------------------


def planted(tree, path, before=b"evil\n", after=b"mine\n", state="undo"):
    """A journal whose saved bytes are to replace what lies at `path`."""
    folder = tree / FOLDER
    (folder / "before").mkdir(parents=True)
    (folder / "before/0").write_bytes(before)
    (folder / state).touch()
    step = {"path": path, "before": blob_id(before), "after": blob_id(after)}
    step["owner"] = [0o4755, NOBODY, NOBODY]
    plan = {"version": VERSION, "purpose": "apply", "steps": [step]}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


@pytest.mark.parametrize("command", ["apply", "revert"])
@pytest.mark.parametrize("state", ["undo", "ready"])
@pytest.mark.parametrize(
    "path",
    [
        "{}",
        "../victim",
        "sglang/../../victim",
        "sglang//victim",
        "victim",
        "sglang/./x",
        "a/RECORD",
    ],
)
def test_a_journal_that_leads_out_of_the_tree_writes_nothing(path, state, command, house, tree):
    victim = tree.parent / "victim"
    victim.write_bytes(b"mine\n")
    mode = victim.stat().st_mode
    folder = planted(tree, path.format(victim), state=state)
    before = content(tree.parent)
    reply = house.ask(command, "--tree", tree)
    assert reply.code == 1
    assert "which is no file of this tree" in reply.shown["message"]
    assert f"mv {folder} " in reply.shown["message"]
    after = content(tree.parent)
    after.pop(f"tree/{FOLDER}/lock", None)
    assert after == before
    assert victim.stat().st_mode == mode


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_link_in_the_tree_does_not_lead_a_journal_out_of_it(command, house, tree):
    victim = tree.parent / "out/victim"
    victim.parent.mkdir()
    victim.write_bytes(b"mine\n")
    (tree / "sglang/out").symlink_to(victim.parent)
    planted(tree, "sglang/out/victim")
    assert house.ask(command, "--tree", tree).code == 1
    assert victim.read_bytes() == b"mine\n"


def test_saved_bytes_that_are_not_those_of_the_plan_are_not_put_back(house, tree):
    folder = planted(tree, POOL, after=PRISTINE[POOL])
    (folder / "before/0").write_bytes(b"other bytes\n")
    reply = house.ask("apply", "--tree", tree)
    assert reply.code == 1
    assert f"{folder}/before/0 is not what {tree / POOL} held before" in reply.shown["message"]
    assert (tree / POOL).read_bytes() == PRISTINE[POOL]


@needs_root
@pytest.mark.parametrize("command", ["apply", "revert"])
@pytest.mark.parametrize("whose", ["another's", "for all to write"])
def test_a_journal_that_another_user_could_have_made_is_refused(whose, command, house, tree):
    folder = planted(tree, POOL, after=PRISTINE[POOL])
    if whose == "another's":
        os.chown(folder, NOBODY, NOBODY)
        says = "only that user can bring the run there to an end\nas that user: sudo -u "
    else:
        folder.chmod(0o777)
        says = "other users can write it; it was left as it is\nto put it aside, and then see"
    reply = house.ask(command, "--tree", tree)
    assert reply.code == 1
    assert says in reply.shown["message"]
    assert (tree / POOL).read_bytes() == PRISTINE[POOL]
    assert house.ask("verify", "--tree", tree).code == 1
    assert says in house.ask("status", "--tree", tree).shown["message"]


def test_kept_originals_that_lead_out_of_the_tree_replace_nothing(house, tree):
    victim = tree.parent / "victim"
    victim.write_bytes(b"mine\n")
    assert house.ask("apply", "--tree", tree).code == 0
    kept = tree / LAID / "pristine"
    (kept / blob_id(b"evil\n")).write_bytes(b"evil\n")
    ids = json.loads((kept / "files.json").read_text())
    for path in (str(victim), "../victim", "sglang/../../victim"):
        more = {path: {"pristine": blob_id(b"evil\n"), "patched": blob_id(b"mine\n")}}
        (kept / "files.json").write_text(json.dumps(ids | more))
        before = content(tree.parent)
        for command in ("revert", "apply"):
            assert house.ask(command, "--tree", tree).code == 1
            assert content(tree.parent) == before


# A journal that cannot be read -------------------------------------------------------------------

GOOD = {"path": POOL, "before": None, "after": "0" * 40, "owner": [420, 0, 0]}


def plan_of(**changes):
    return json.dumps({"version": VERSION, "purpose": "apply", "steps": [{**GOOD, **changes}]})


@pytest.mark.parametrize(
    "plan",
    [
        "",
        '{"purpose": "app',
        "[" * 100_000,
        "[]",
        "null",
        "\udcff",
        '{"purpose": "apply", "steps": [{"file": "x"}]}',
        json.dumps({"version": VERSION + 1, "purpose": "apply", "steps": []}),
        json.dumps({"version": VERSION, "purpose": "\x1b[2J", "steps": []}),
        json.dumps({"version": VERSION, "purpose": "apply", "steps": {}}),
        json.dumps({"version": VERSION, "purpose": "apply", "steps": [1]}),
        plan_of(path=1),
        plan_of(path="sglang/\0"),
        plan_of(before="../x"),
        plan_of(after=7),
        plan_of(owner=[420, 0]),
        plan_of(owner=[420, 0, -1]),
        plan_of(owner=[True, 0, 0]),
        plan_of(owner=[1 << 20, 0, 0]),
        plan_of(owner=None),
    ],
    ids=range(20),
)
def test_a_plan_that_is_none_is_told_and_the_named_command_helps(plan, house, tree):
    before = content(tree)
    folder = tree / FOLDER
    folder.mkdir()
    (folder / "plan.json").write_text(plan, errors="surrogateescape")
    for command in ("status", "verify", "apply", "revert"):
        reply = house.ask(command, "--tree", tree)
        assert reply.code == (command != "status")
        assert f"{folder} is no journal of this tool: " in reply.shown["message"]
    again = reply.shown["message"].splitlines()[-1].rpartition(": ")[2]
    subprocess.run(shlex.split(again), check=True)
    assert house.ask("apply", "--tree", tree).code == 0
    assert house.ask("revert", "--tree", tree).code == 0
    after = content(tree)
    assert {path: after[path] for path in before} == before
    assert not folder.exists()


# Who reads while another writes ------------------------------------------------------------------


@pytest.fixture
def at_work(house, tree):
    """An apply that stands still in the midst of its renames, until the test ends."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:

        def stand(_):
            os.write(told, b"!")
            while True:
                time.sleep(60)

        staging.Step.finish = stand
        house.run("apply", "--tree", tree)
        os._exit(0)
    os.read(ready, 1)
    yield
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(told)


def test_two_readers_at_once_both_see_the_writer(house, tree, at_work):
    house.installed()
    argv = [sys.executable, "-IB", house.home / "apply.py", "status", "--tree", tree]
    readers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for reader in readers:
        out, _ = reader.communicate(timeout=60)
        assert (reader.returncode, "`apply` is at work on this tree now" in out) == (0, True)


def test_a_reader_is_not_taken_for_a_writer_by_another_one(house, tree):
    cut_short(house, tree, "finish", "apply")
    with (tree / FOLDER / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as a reader has it while it looks
        message = house.ask("status", "--tree", tree).shown["message"]
    assert "`apply` was interrupted here" in message


@needs_root
@pytest.mark.parametrize("command", ["status", "verify"])
def test_another_user_can_read_while_root_applies(command, house, tree, at_work):
    with nobody(tree):
        reply = house.ask(command, "--tree", tree)
    assert reply.code == (command == "verify")
    assert "`apply` is at work on this tree now" in reply.shown["message"]


@needs_root
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_another_user_is_told_who_can_end_roots_run(mode, house, tree):
    cut_short(house, tree, "finish", "apply")
    (tree / FOLDER / "plan.json").chmod(mode)
    with nobody(tree):
        reply = house.ask("status", "--tree", tree)
        assert house.ask("verify", "--tree", tree).code == 1
    assert reply.code == 0
    says = "is of the user root" if mode == 0o644 else "which this user may not read"
    assert says in reply.shown["message"]
    assert house.ask("apply", "--tree", tree).code == 0


# Bytecode that the user may not remove -----------------------------------------------------------


@needs_root
def test_bytecode_of_root_in_a_users_tree_is_refused_before_anything_is_written(house, tree):
    for folder, _, files in os.walk(tree):
        for name in ("", *files):
            os.chown(os.path.join(folder, name), NOBODY, NOBODY)
    cached = tree / "sglang/srt/__pycache__"
    cached.mkdir()
    (cached / "pool.cpython-311.pyc").touch()
    before = content(tree)
    with nobody(tree):
        reply = house.ask("apply", "--tree", tree)
    assert reply.code == 1
    assert f"sudo rm -r {cached}" in reply.shown["message"]
    assert content(tree) == before
    (cached / "pool.cpython-311.pyc").unlink()
    with nobody(tree):
        assert house.ask("apply", "--tree", tree).code == 0


# Done is done ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("end", [">/dev/full", ">&-", ">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_what_cannot_be_printed_is_done_all_the_same(end, words, house, tree):
    house.installed()
    script = [sys.executable, "-IB", str(house.home / "apply.py")]
    for command, status in (("apply", "patched"), ("revert", "pristine")):
        argv = shlex.join([*script, command, "--tree", str(tree), *words])
        done = subprocess.run(["sh", "-c", f"{argv} {end}"], capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False)
        assert house.ask("status", "--tree", tree).shown["status"] == status


@pytest.mark.parametrize("call", ["rmdir", "unlink"])
def test_a_journal_that_cannot_be_cleared_is_no_failure(call, house, tree, monkeypatch):
    real = getattr(os, call)

    def busy(path, *args, **words):
        if path in ("before", FOLDER, "ready", "lock"):
            os.stat(path, **words)  # what is not there is not busy
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        return real(path, *args, **words)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, busy)
        assert house.ask("apply", "--tree", tree).code == 0
    assert house.ask("verify", "--tree", tree).code == 0
    assert house.ask("revert", "--tree", tree).code == 0
    assert not (tree / FOLDER).exists()


# Odd things on the search path -------------------------------------------------------------------


def link_to_nothing(place):
    place.symlink_to("/nonexistent")


def link_to_itself(place):
    place.symlink_to(place.name)


def device(place):
    place.symlink_to("/dev/zero")


def not_utf8(place):
    place.write_bytes(b"\xff\xfe\0\n/nonexistent\n")


@pytest.mark.parametrize("name", ["a.pth", "__editable___a_sglang_finder.py"])
@pytest.mark.parametrize(
    "make", [link_to_nothing, link_to_itself, device, os.mkfifo, os.mkdir, not_utf8]
)
def test_an_odd_file_beside_an_editable_install_is_passed_over(
    make, name, house, tree, monkeypatch
):
    site = tree.parent / "site"
    site.mkdir()
    make(site / name)
    (site / "z.pth").write_text(f"{tree}\n")
    monkeypatch.setattr(sys, "path", [str(site)])
    reply = house.ask("status")
    assert (reply.code, reply.shown["tree"]) == (0, str(tree / "sglang"))
