"""Changing many files as if they were one: all of them, or none, whatever happens meanwhile.

The journal is a folder beside the package. Its `plan.json` appears only when the bytes that will
be replaced are saved; `ready` only when every new file lies, fsynced, beside its target. So a run
that was killed leaves one of three things: no plan (nothing was changed), a plan that is not ready
(only staged files to remove), or one that is (renames to finish). A rename that fails turns
`ready` into `undo`, and what was renamed is put back from the saved bytes. The plan goes first
when all is done: without it, the rest means nothing.

A journal counts only if this user made it and nobody else can write it: whoever else can write
the tree could have planted it.
"""

import contextlib
import errno
import fcntl
import os
import pwd
import shlex
import stat
import sys
from collections.abc import Callable, Iterator

from patchset import plan as plans
from patchset.errors import Refused
from patchset.folder import Folder
from patchset.plan import PLAN, Plan
from patchset.run import Run, held_signals, refusal
from patchset.tree import Tree

FOLDER = ".rocm_patches.journal"
LOCK = "lock"

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Journal:
    def __init__(self, tree: Tree):
        self.tree = tree
        self.path = tree.root / FOLDER

    # For readers -----------------------------------------------------------------------------

    def exists(self) -> bool:
        with Folder.at(self.tree.root) as root:
            return root.stat(FOLDER) is not None

    def stamp(self) -> int:
        """Another number whenever the journal's folder has come or gone."""
        with Folder.at(self.tree.root) as root:
            return root.itself().st_mtime_ns

    def standing(self) -> str | None:
        """What a run that has not ended means for this tree, None where there is none."""
        try:
            with Folder.at(self.path) as folder:
                plan = self._plan(folder)
                if plan and _is_locked(folder):
                    return f"`{plan.purpose}` is at work on this tree now"
                if plan:
                    self._check_owner(folder)
        except FileNotFoundError:
            return None
        except PermissionError:
            return f"{self.path} holds a run that did not end, which this user may not read"
        except OSError as fault:
            return f"{self.path} cannot be read: {fault.strerror}"
        except Refused as refusal:
            return str(refusal)
        if not plan:
            return None
        interrupted = f"`{plan.purpose}` was interrupted here"
        return f"{interrupted}; the next apply or revert brings it to an end"

    # One writer at a time --------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self, tell: Callable[[str], None]) -> Iterator[Run]:
        """The right to write; waits for another writer, and says for whom."""
        try:
            folder, lock = self._locked(tell)
        except OSError as fault:
            raise refusal(fault) from fault
        run = Run(self.tree, folder, self._plan)
        try:
            with contextlib.suppress(OSError):  # a courtesy to those who wait
                os.ftruncate(lock, 0)
                os.pwrite(lock, b"process %d" % os.getpid(), 0)
            yield run
        finally:
            with held_signals(), contextlib.suppress(OSError):
                if not folder.stat(PLAN):
                    run.clear()
                    self._go(folder)
            os.close(lock)
            folder.close()

    def _locked(self, tell: Callable[[str], None]) -> tuple[Folder, int]:
        while True:
            with contextlib.ExitStack() as kept:
                try:
                    folder = kept.enter_context(self._made())
                    self._check_owner(folder)
                    lock = folder.locked_file(LOCK)
                except FileNotFoundError:
                    continue  # the last writer removed the folder in between
                kept.callback(os.close, lock)
                self._wait(folder, lock, tell)
                # A lock on a file that its last holder has removed excludes nobody.
                there = folder.stat(LOCK)
                if there and os.path.samestat(os.fstat(lock), there):
                    kept.pop_all()
                    return folder, lock

    def _made(self) -> Folder:
        with Folder.at(self.tree.root) as root:
            root.make(FOLDER)
            return root.enter(FOLDER)

    def _wait(self, folder: Folder, lock: int, tell: Callable[[str], None]) -> None:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 100, 0).decode(errors="replace")
                who = holder if holder.isprintable() and holder else "another process"
                tell(f"waiting for {who}, which is changing {self.tree.package}")
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as fault:
            if fault.errno not in _NO_LOCKS:
                raise
            if not folder.stat(PLAN):
                self._go(folder)
            raise Refused(
                f"{self.path} lies on a file system without locks ({fault.strerror}), so that two "
                "runs could meet there; the tree is as it was before\n"
                "copy the tree to a local disk, and name the copy with --tree"
            ) from fault

    def _go(self, folder: Folder) -> None:
        folder.unlink(LOCK)
        with contextlib.suppress(OSError), Folder.at(self.tree.root) as root:
            root.remove(FOLDER)  # the next writer may be in already

    # Whose it is -----------------------------------------------------------------------------

    def _check_owner(self, folder: Folder) -> None:
        found = folder.itself()
        if found.st_uid != os.geteuid():
            who = _name(found.st_uid)
            again = shlex.join(["sudo", "-u", who, sys.executable, *sys.argv])
            raise Refused(
                f"{self.path} is of the user {who}, not of {_name(os.geteuid())}: only that user "
                f"can bring the run there to an end\nas that user: {again}"
            )
        if stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            raise self._odd("other users can write it")

    def _plan(self, folder: Folder) -> Plan | None:
        try:
            return plans.parsed(folder.read(PLAN), self.tree)
        except FileNotFoundError:
            return None
        except plans.UnreadableError as fault:
            raise self._odd(str(fault)) from fault

    def _odd(self, why: str) -> Refused:
        aside = shlex.join(["mv", str(self.path), f"{self.path}.{os.getpid()}"])
        return Refused(
            f"{self.path} is no journal of this tool: {why}; it was left as it is\n"
            f"to put it aside, and then see what the tree is: {aside}"
        )


def _is_locked(folder: Folder) -> bool:
    """Whether a process is changing the tree now."""
    try:
        with folder.opened(LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as fault:
        return isinstance(fault, BlockingIOError)
    return False


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
