"""What a run does with the journal that it holds: carry out its plan, or end the one it found.

The order is what a power cut relies on. What a step needs is on the disk before the step: saved
bytes before the plan, staged files before `ready`, modules before the hooks that call them, and
all of it before the plan goes.
"""

import contextlib
import errno
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from patchset import plan as plans
from patchset.diff import blob_id
from patchset.errors import Refused
from patchset.folder import Folder, made
from patchset.plan import PLAN, Plan
from patchset.series import OVERLAY
from patchset.staging import Owner, Step, own
from patchset.tree import Tree

DRAFT, READY, UNDO, SAVED = f"{PLAN}.draft", "ready", "undo", "before"

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


class Run:
    def __init__(self, tree: Tree, folder: Folder, plan: Callable[[Folder], Plan | None]):
        self.tree = tree
        self.folder = folder  # the journal's, which only this process changes
        self.plan = plan
        self.lost = Counter[str]()  # what the new files could not be given, and how many of them

    def carry_out(self, changes: Sequence[Change], purpose: str) -> None:
        try:
            steps = self._steps(changes)
            for step in steps:
                step.check_bytecode()
            self._begin(changes, steps, purpose)
            with held_signals():
                self._finish(steps)
        except BaseException as fault:
            with held_signals():
                if self.folder.stat(READY):
                    self.folder.rename(READY, UNDO)
                self.recover()
            if isinstance(fault, OSError):
                raise refusal(fault) from fault
            raise

    def recover(self) -> str | None:
        """Bring a run that did not end to an end, and say to which."""
        plan = self.plan(self.folder)
        if not plan:
            self.clear()
            return None
        try:
            how = self._recover(plan.steps)
        except (OSError, Refused) as fault:
            said = f"{_said(fault)}\n{_advice(fault)}" if isinstance(fault, OSError) else str(fault)
            raise Refused(
                f"a run that did not end (`{plan.purpose}`) waits in {self.folder.path}: {said}, "
                "then run the same command again"
            ) from fault
        return f"an interrupted `{plan.purpose}` was found and {how}"

    def clear(self) -> None:
        """Without a plan the rest means nothing, and what of it stays does no harm."""
        with contextlib.suppress(OSError, Refused):
            for left in (READY, UNDO, DRAFT):
                self.folder.unlink(left)
            with contextlib.suppress(FileNotFoundError), self.folder.enter(SAVED) as saved:
                for name in saved.names():
                    saved.unlink(name)
                self.folder.remove(SAVED)

    def not_kept(self) -> list[str]:
        return [
            f"not kept, since this user or the file system may not: {what} of {count} "
            f"file{'s' if count > 1 else ''}"
            for what, count in sorted(self.lost.items())
        ]

    # Forwards --------------------------------------------------------------------------------

    def _steps(self, changes: Sequence[Change]) -> list[Step]:
        model = Owner.of(_found(self.tree.package / "__init__.py"))
        model = model._replace(mode=model.mode & 0o777)
        return [
            Step(
                self.tree.file(path),
                None if before is None else blob_id(before),
                None if after is None else blob_id(after),
                model if before is None else Owner.of(_found(self.tree.file(path))),
            )
            for path, before, after in changes
        ]

    def _begin(self, changes: Sequence[Change], steps: Sequence[Step], purpose: str) -> None:
        self.folder.make(SAVED)
        with self.folder.enter(SAVED) as saved:
            for number, change in enumerate(changes):
                if change.before is not None:
                    saved.create(str(number), change.before)
            saved.sync()
        paths = [change.path for change in changes]
        # For every user to read: `status` of another one says what is going on.
        text = plans.packed(purpose, [*zip(paths, steps, strict=True)])
        self.folder.create(DRAFT, text, mode=0o644)
        self.folder.rename(DRAFT, PLAN)
        self.folder.sync()
        owner = Owner.of(_found(self.tree.package))
        for step, change in zip(steps, changes, strict=True):
            if change.after is not None:
                self._make_folder(step.target.parent, owner)
                self.lost.update(step.stage(change.after))
        for place in _folders(steps):
            _sync(place)
        self.folder.create(READY, b"")
        self.folder.sync()

    def _make_folder(self, path: Path, owner: Owner) -> None:
        def dress(handle: int) -> None:
            self.lost.update(own(handle, owner))

        made(self.tree.root, path.relative_to(self.tree.root).parts, dress).close()

    def _finish(self, steps: Sequence[Step]) -> None:
        for place, some in groupby(steps, key=lambda step: step.target.parent):
            for step in some:
                step.finish()
            _sync(place)
        wrong = [step.target for step in steps if step.now() != step.after]
        if wrong:
            raise Refused(f"{wrong[0]} is not what was written there: another program changes it")
        self._end()

    # Backwards, or on from where a run stopped -----------------------------------------------

    def _recover(self, steps: Sequence[Step]) -> str:
        # A power cut must find what this run does, `ready` or `undo`, before it acts on it.
        self.folder.sync()
        if not self.folder.stat(READY):
            self._put_back(steps)
            return "undone"
        foreign = [step.target for step in steps if not step.can_finish()]
        if not foreign:
            self._finish(steps)
            return "finished"
        for step in steps:
            step.forget()
        self._end()
        return f"given up, because {foreign[0]} has changed since"

    def _put_back(self, steps: Sequence[Step]) -> None:
        if self.folder.stat(UNDO):
            for step, saved in zip(steps, self._saved(steps), strict=True):
                step.put_back(saved)
        else:
            for step in steps:
                step.forget()
        for place in _folders(steps):
            _sync(place)
        self._end()

    def _saved(self, steps: Sequence[Step]) -> list[bytes | None]:
        """The bytes to put back, each proven by the plan."""
        with self.folder.enter(SAVED) as folder:
            saved = [folder.read(str(n)) if s.before else None for n, s in enumerate(steps)]
            for number, (data, step) in enumerate(zip(saved, steps, strict=True)):
                if data is not None and blob_id(data) != step.before:
                    raise Refused(
                        f"{folder.path / str(number)} is not what {step.target} held before\n"
                        "put that file there, or move the journal away"
                    )
        return saved

    def _end(self) -> None:
        self._prune()
        self.folder.unlink(PLAN)
        # Now it is done: what goes wrong from here on does not undo it.
        with contextlib.suppress(OSError):
            self.folder.sync()
        self.clear()

    def _prune(self) -> None:
        """Take away the overlay's folders in which only bytecode is left."""
        overlay = self.tree.file(OVERLAY)
        # A folder that cannot be removed holds nothing that Python would import.
        with contextlib.suppress(OSError, Refused), Folder.at(overlay.parent) as above:
            if _is_pruned(above, overlay.name):
                above.sync()


def _is_pruned(above: Folder, name: str) -> bool:
    """Whether the folder held nothing but bytecode, and is gone."""
    with above.enter(name) as folder:
        rest = [below for below in folder.names() if below != "__pycache__"]
        kept = [
            below for below in rest if not (folder.is_folder(below) and _is_pruned(folder, below))
        ]
        if kept:
            return False
        if folder.is_folder("__pycache__"):
            with folder.enter("__pycache__") as cached:
                for compiled in cached.names():
                    cached.unlink(compiled)
            folder.remove("__pycache__")
    above.remove(name)
    return True


def _folders(steps: Sequence[Step]) -> list[Path]:
    return list(dict.fromkeys(step.target.parent for step in steps))


def _sync(place: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), Folder.at(place) as folder:
        folder.sync()


def _found(file: Path) -> os.stat_result:
    with Folder.at(file.parent) as place:
        found = place.stat(file.name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    return found


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
    return f"cannot write {fault.filename}: {fault.strerror}"


def _advice(fault: OSError) -> str:
    return _ADVICE.get(fault.errno or 0, "mend that")
