"""Changing many files as if they were one: all of them, or none, whatever happens meanwhile.

The journal is a folder beside the package. Its `plan.json` appears only when the bytes that will
be replaced are saved; `ready` only when every new file lies, fsynced, beside its target. So a run
that was killed leaves one of three things: no plan (nothing was changed), a plan that is not ready
(only staged files to remove), or one that is (renames to finish). A rename that fails turns
`ready` into `undo`, and what was renamed is put back from the saved bytes.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from patchset.diff import blob_id
from patchset.errors import Refused
from patchset.series import OVERLAY
from patchset.staging import Owner, Step, create, own, sync_folder
from patchset.tree import Tree

FOLDER = ".rocm_patches.journal"

_ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of the quota there",
    errno.EROFS: "mount it writable, or name a copy of the tree with --tree",
    errno.EACCES: "become the owner of the tree",
    errno.EPERM: "become the owner of the tree",
    errno.EBUSY: "it is mounted by itself: start the container without that mount",
}


class Change(NamedTuple):
    path: str
    before: bytes | None
    after: bytes | None  # None: the file goes


class Journal:
    def __init__(self, tree: Tree):
        self.tree = tree
        self.folder = tree.root / FOLDER
        self.lock = self.folder / "lock"
        self.plan = self.folder / "plan.json"
        self.ready = self.folder / "ready"
        self.undo = self.folder / "undo"

    def exists(self) -> bool:
        return self.folder.exists()

    def stamp(self) -> int:
        """Another number whenever the journal's folder has come or gone."""
        return self.tree.root.stat().st_mtime_ns

    def interrupted(self) -> str | None:
        """The command whose run has not ended, None where there is none."""
        try:
            return str(json.loads(self.plan.read_bytes())["purpose"])
        except FileNotFoundError:
            return None

    def at_work(self) -> bool:
        """Whether a process is changing the tree now."""
        try:
            with self.lock.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as fault:
            return isinstance(fault, BlockingIOError)
        return False

    # One writer at a time --------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, tell: Callable[[str], None]) -> Iterator[None]:
        """The right to write; waits for another writer, and says for whom."""
        try:
            lock = self._locked(tell)
        except OSError as fault:
            raise refusal(fault) from fault
        try:
            with contextlib.suppress(OSError):  # a courtesy to those who wait
                os.ftruncate(lock, 0)
                os.pwrite(lock, b"process %d" % os.getpid(), 0)
            yield
        finally:
            with held_signals():
                if not self.plan.exists():
                    self._clear()
                    self.lock.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # the next writer may be in already
                        self.folder.rmdir()
            os.close(lock)

    def _locked(self, tell: Callable[[str], None]) -> int:
        while True:
            self.folder.mkdir(exist_ok=True)
            try:
                lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue  # the last writer removed the folder in between
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = self.lock.read_text() or "another process"
                tell(f"waiting for {holder}, which is changing {self.tree.package}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # A lock on a file that its last holder has removed excludes nobody.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), self.lock.stat()):
                    return lock
            os.close(lock)

    # All or nothing --------------------------------------------------------------------------

    def carry_out(self, changes: Sequence[Change], purpose: str) -> None:
        try:
            self._begin(changes, purpose)
            with held_signals():
                self._finish(self._steps())
        except BaseException as fault:
            with held_signals():
                if self.ready.exists():
                    self.ready.rename(self.undo)
                self.recover()
            if isinstance(fault, OSError):
                raise refusal(fault) from fault
            raise

    def recover(self) -> str | None:
        """Bring a run that did not end to an end, and say to which."""
        purpose = self.interrupted()
        try:
            if not purpose:
                self._clear()
                return None
            return f"an interrupted `{purpose}` was found and {self._recover()}"
        except OSError as fault:
            raise Refused(
                f"{_said(fault)}; a run that did not end (`{purpose}`) waits in {self.folder}\n"
                f"{_advice(fault)}, then run the same command again"
            ) from fault

    def _recover(self) -> str:
        steps = self._steps()
        if not self.ready.exists():
            self._put_back(steps)
            return "undone"
        foreign = [step.target for step in steps if not step.can_finish()]
        if not foreign:
            self._finish(steps)
            return "finished"
        for step in steps:
            step.forget()
        self._clear()
        return f"given up, because {foreign[0]} has changed since"

    def _begin(self, changes: Sequence[Change], purpose: str) -> None:
        model = Owner.of(self.tree.package / "__init__.py")
        steps = []
        saved = self.folder / "before"
        saved.mkdir(exist_ok=True)
        for number, change in enumerate(changes):
            owner = model
            if change.before is not None:
                owner = Owner.of(self.tree.file(change.path))
                create(saved / str(number), change.before)
            ids = [None if d is None else blob_id(d) for d in (change.before, change.after)]
            steps.append({"path": change.path, "before": ids[0], "after": ids[1], "owner": owner})
        draft = self.folder / "plan.json.draft"
        create(draft, json.dumps({"purpose": purpose, "steps": steps}).encode())
        draft.replace(self.plan)
        sync_folder(self.folder)
        self._make_folders(changes)
        for step, change in zip(self._steps(), changes, strict=True):
            if change.after is not None:
                create(step.staged, change.after, step.owner)
        create(self.ready, b"")
        sync_folder(self.folder)

    def _make_folders(self, changes: Sequence[Change]) -> None:
        owner = Owner.of(self.tree.package)
        for target in {self.tree.file(c.path) for c in changes if c.after is not None}:
            missing = [folder for folder in target.parents if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir()
                own(folder, owner)

    def _steps(self) -> list[Step]:
        steps = json.loads(self.plan.read_bytes())["steps"]
        return [
            Step(self.tree.file(s["path"]), s["before"], s["after"], Owner(*s["owner"]))
            for s in steps
        ]

    def _finish(self, steps: Sequence[Step]) -> None:
        for step in steps:
            step.finish()
        self._end(steps)

    def _put_back(self, steps: Sequence[Step]) -> None:
        for number, step in enumerate(steps):
            if self.undo.exists():
                saved = self.folder / "before" / str(number)
                step.put_back(saved.read_bytes() if step.before else None)
            else:
                step.forget()
        self._end(steps)

    def _end(self, steps: Sequence[Step]) -> None:
        for folder in {step.target.parent for step in steps}:
            if folder.exists():
                sync_folder(folder)
        self._prune()
        self._clear()

    def _prune(self) -> None:
        """Take away the overlay's folders in which only bytecode is left."""
        for where, _, _ in os.walk(self.tree.file(OVERLAY), topdown=False):
            folder = Path(where)
            cached = folder / "__pycache__"
            if folder.name != "__pycache__" and {*folder.iterdir()} <= {cached}:
                for compiled in cached.iterdir() if cached.exists() else ():
                    compiled.unlink()
                if cached.exists():
                    cached.rmdir()
                folder.rmdir()

    def _clear(self) -> None:
        self.plan.unlink(missing_ok=True)  # first: without it, the rest means nothing
        sync_folder(self.folder)
        for left in (self.ready, self.undo, self.folder / "plan.json.draft"):
            left.unlink(missing_ok=True)
        saved = self.folder / "before"
        if saved.exists():
            for file in saved.iterdir():
                file.unlink()
            saved.rmdir()


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Ctrl-C and a polite kill take effect after the block."""
    arrived: list[int] = []
    # Not a signal mask: another thread, if there is one, would still take the signal.
    before = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def refusal(fault: OSError) -> Refused:
    return Refused(
        f"{_said(fault)}; the tree is as it was before\n"
        f"{_advice(fault)}, then run the same command again"
    )


def _said(fault: OSError) -> str:
    return f"cannot write {fault.filename2 or fault.filename}: {fault.strerror}"


def _advice(fault: OSError) -> str:
    return _ADVICE.get(fault.errno or 0, "mend that")
