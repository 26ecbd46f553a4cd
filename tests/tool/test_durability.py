"""Catches a step that a power cut could keep without the step before it.

Every call that reaches the disk is recorded, in order: the order is what a power cut relies on.
"""

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

import pytest

from patchset import staging
from patchset.folder import Folder
from patchset.journal import FOLDER
from patchset.staging import Owner
from tests.tool.synthetic import LAID, PRISTINE, RECORD, content

PLAN, READY, UNDO, SAVED = (f"{FOLDER}/{name}" for name in ("plan.json", "ready", "undo", "before"))
STAGED = ".rocm_patches"

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="asks /proc which file a descriptor is of"
)


class Call(NamedTuple):
    what: str
    path: str
    old: str = ""  # of a rename
    data: bytes = b""  # what a file held when it was synced


class Calls(list):
    def of(self, what, path=None):
        """The places of the calls `what`, all or those for `path`."""
        return [n for n, call in enumerate(self) if call.what == what and path in (None, call.path)]

    def first(self, what, path):
        return self.of(what, path)[0]

    def last(self, what, path):
        return self.of(what, path)[-1]

    def is_synced(self, path, since, until):
        return any(since < n < until for n in self.of("sync", path))


@pytest.fixture
def calls(tree, monkeypatch):
    seen = Calls()

    def path_of(handle, name=None):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"), name or "")
        return str(path.relative_to(tree)) if path.is_relative_to(tree) else ""

    def record(name, told):
        real = getattr(os, name)

        def call(*args, **words):
            result = real(*args, **words)
            about = told(result, *args, **words)
            if about and about.path:
                seen.append(about)
            return result

        monkeypatch.setattr(os, name, call)

    def synced(_, handle):
        whole = stat.S_ISREG(os.fstat(handle).st_mode)
        data = Path(f"/proc/self/fd/{handle}").read_bytes() if whole else b""
        return Call("sync", path_of(handle), data=data)

    def renamed(_, old, new, *, src_dir_fd, dst_dir_fd):
        return Call("rename", path_of(dst_dir_fd, new), path_of(src_dir_fd, old))

    def made(handle, _, flags, *__, **___):
        return Call("create", path_of(handle)) if flags & os.O_CREAT else None

    record("open", made)
    record("fsync", synced)
    record("rename", renamed)
    for what, name in (("unlink", "unlink"), ("rmdir", "rmdir"), ("mkdir", "mkdir")):
        record(
            name,
            lambda _, path, *__, what=what, dir_fd=None: (
                dir_fd and Call(what, path_of(dir_fd, path))
            ),
        )
    record("fchown", lambda _, handle, *__: Call("chown", path_of(handle)))
    record("fchmod", lambda _, handle, *__: Call("chmod", path_of(handle)))
    return seen


@pytest.fixture(params=["apply", "revert", "upgrade"])
def move(request, house, tree, calls):
    """A move that was recorded, with the tree's content before and after it."""
    if request.param != "apply":
        assert house.ask("apply", "--tree", tree).code == 0
    if request.param == "upgrade":
        house.lay("norm.py", text="# another revision\n")
    before = content(tree)
    del calls[:]
    verb = "revert" if request.param == "revert" else "apply"
    assert house.ask(verb, "--tree", tree).code == 0
    return calls, before, content(tree)


def staged(path):
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}{STAGED}"


def folder_of(path):
    return path.rpartition("/")[0]


def test_what_a_move_replaces_is_on_the_disk_before_its_plan_counts(move):
    calls, before, after = move
    plan = calls.first("rename", PLAN)
    assert calls.is_synced(".", calls.first("mkdir", FOLDER), plan)
    assert calls.is_synced(FOLDER, calls.first("mkdir", SAVED), plan)
    saved = [call.data for call in calls[:plan] if call.what == "sync" and call.data]
    for path in before:
        if before[path] and after.get(path) != before[path]:
            assert before[path] in saved
    last = max(n for n in calls.of("create") if calls[n].path.startswith(f"{SAVED}/"))
    assert calls.is_synced(SAVED, last, plan)
    draft = calls[plan].old
    assert calls.is_synced(draft, calls.first("create", draft), plan)
    changed = [n for n in calls.of("create") if calls[n].path.endswith(STAGED)]
    assert calls.is_synced(FOLDER, plan, min(changed))
    assert not [call for call in calls[:plan] if not call.path.startswith((FOLDER, "."))]


def test_what_a_move_makes_is_on_the_disk_before_it_is_ready(move):
    calls, before, after = move
    ready = calls.first("create", READY)
    for path in after:
        if after[path] == before.get(path):
            continue
        assert [c.data for c in calls[:ready] if c[:2] == ("sync", staged(path))] == [after[path]]
        assert calls.is_synced(folder_of(path), calls.first("create", staged(path)), ready)
    for made in calls.of("mkdir"):
        assert calls.is_synced(folder_of(calls[made].path) or ".", made, ready)
    changed = [n for n in calls.of("rename") if calls[n].old.endswith(STAGED)]
    changed += [n for n in calls.of("unlink") if calls[n].path in before]
    synced = calls.first("sync", READY)
    assert ready < synced < min(changed)
    assert calls.is_synced(FOLDER, synced, min(changed))


def test_the_plan_goes_when_all_else_is_on_the_disk_and_nothing_is_changed_after_it(move):
    calls, before, after = move
    gone = calls.first("unlink", PLAN)
    changed = [n for n in calls.of("rename") if calls[n].path in after]
    changed += [n for n in calls.of("unlink") if calls[n].path in before]
    assert {calls[n].path for n in changed} == {
        path for path in {*before, *after} if before.get(path) != after.get(path)
    }
    for n in changed:
        folder = folder_of(calls[n].path)
        went = calls.of("rmdir", folder)
        assert calls.is_synced(folder, n, gone) or (went and n < went[0] < gone)
    for n in calls.of("rmdir", LAID):
        assert calls.is_synced("sglang/srt", n, gone)
    assert calls.is_synced(FOLDER, gone, len(calls))
    # The originals and the marks that the plan needs go after it, never before.
    early = [c.path for c in calls[:gone] if c.what == "unlink" and c.path.startswith(FOLDER)]
    assert early == []
    assert [call for call in calls[gone:] if not call.path.startswith(FOLDER)] == []
    assert calls[-1] == Call("rmdir", FOLDER)


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_hooks_are_never_on_the_disk_without_their_modules(verb, house, tree, calls):
    if verb == "revert":
        assert house.ask("apply", "--tree", tree).code == 0
        del calls[:]
    assert house.ask(verb, "--tree", tree).code == 0
    hooks = [n for n in calls.of("rename") if calls[n].path in PRISTINE]
    record = calls.first("rename", RECORD)
    what = "rename" if verb == "apply" else "unlink"
    modules = [n for n in calls.of(what) if calls[n].path.startswith(f"{LAID}/")]
    modules = [n for n in modules if not calls[n].path.endswith(STAGED)]
    assert (len(hooks), len(modules) > 9) == (len(PRISTINE), True)
    first, then = (modules, hooks) if verb == "apply" else (hooks, modules)
    assert max(first) < min(then)
    assert max(then) < record
    for n in first:  # and known to the disk in that order
        assert calls.is_synced(folder_of(calls[n].path), n, min(then))


def test_an_undo_is_on_the_disk_before_anything_is_put_back(house, tree, calls, monkeypatch):
    before = content(tree)
    rename = Folder.rename

    def failing(self, name, new, into=None):
        if name == ".server.py.rocm_patches":
            monkeypatch.setattr(Folder, "rename", rename)
            raise OSError(errno.EIO, "Input/output error", str(self.path / new))
        return rename(self, name, new, into)

    monkeypatch.setattr(Folder, "rename", failing)
    assert house.ask("apply", "--tree", tree).code == 1
    assert content(tree) == before
    undo = calls.first("rename", UNDO)
    back = [n for n in calls.of("rename") if n > undo]
    assert {calls[n].path for n in back} == {*PRISTINE} - {"sglang/srt/server.py"}
    for n in back:
        path = calls[n].path
        made = calls.last("create", staged(path))
        assert calls.is_synced(FOLDER, undo, made)
        assert [c.data for c in calls[made:n] if c[:2] == ("sync", staged(path))] == [before[path]]
        assert calls.is_synced(folder_of(path), n, calls.first("unlink", PLAN))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_an_owner_is_given_before_the_mode_which_a_new_owner_would_clear(tree, calls):
    file = tree / "sglang/other.py"
    handle = os.open(file, os.O_WRONLY)
    assert staging.own(handle, Owner(0o6755, 65534, 65534)) == []
    found = os.fstat(handle)
    os.close(handle)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o6755)
    assert [call.what for call in calls] == ["chown", "chown", "chmod"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_mode_with_rights_is_not_given_to_a_file_whose_owner_could_not_be_kept(tree):
    file = tree / "sglang/other.py"
    os.chown(file, 65534, 65534)
    with file.open("rb+") as opened:
        os.seteuid(65534)
        try:
            lost = staging.own(opened.fileno(), Owner(0o6755, 0, 0))
        finally:
            os.seteuid(0)
    assert lost[0] == "the owner"
    assert stat.S_IMODE(file.stat().st_mode) == 0o755
