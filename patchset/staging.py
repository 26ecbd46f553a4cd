"""Replacing one file: the new one is made whole beside it, then renamed over it."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from patchset.diff import blob_id
from patchset.errors import Refused
from patchset.folder import Folder
from patchset.tree import STAGED

# What a user who may write a file may yet be denied, or a file system does not have.
_NOT_KEPT = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
# The kernel takes these from a file whose content changes; so they are not given to the new one.
_OF_THE_CONTENT = {"security.capability", "security.ima", "security.evm"}
_ABSENT = (FileNotFoundError, NotADirectoryError)
_ANOTHERS_RIGHTS = stat.S_ISUID | stat.S_ISGID


class Owner(NamedTuple):
    mode: int
    uid: int
    gid: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Owner":
        return cls(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


class Step(NamedTuple):
    """One file of a change, as the journal's plan has it."""

    target: Path
    before: str | None  # blob ids; None: no such file
    after: str | None
    owner: Owner

    @property
    def staged(self) -> str:
        return f".{self.target.name}{STAGED}"

    def now(self) -> str | None:
        """The blob id of what is there."""
        with contextlib.suppress(*_ABSENT), self._place() as place:
            return _blob_at(place, self.target.name)
        return None

    def can_finish(self) -> bool:
        if self.now() == self.after:
            return True
        if self.after is None or self.now() != self.before:
            return self.now() == self.before
        with contextlib.suppress(*_ABSENT), self._place() as place:
            return _blob_at(place, self.staged) == self.after
        return False

    def stage(self, data: bytes) -> list[str]:
        """Lay `data` beside the target; what of the old file the new one could not be given."""
        lost = list[str]()
        with self._place() as place:

            def dress(handle: int) -> None:
                lost.extend(copied_attributes(place, self.target.name, handle))
                lost.extend(own(handle, self.owner))

            place.create(self.staged, data, dress)
        return lost

    def finish(self) -> None:
        if self.after is None:
            self._remove()
            return
        with self._place() as place:
            if place.stat(self.staged):
                place.rename(self.staged, self.target.name)
            self._forget_bytecode(place)

    def forget(self) -> None:
        with contextlib.suppress(*_ABSENT), self._place() as place:
            place.unlink(self.staged)

    def put_back(self, before: bytes | None) -> None:
        self.forget()
        if self.now() != self.after:
            return
        if before is None:
            self._remove()
            return
        self.stage(before)
        with self._place() as place:
            place.rename(self.staged, self.target.name)
            self._forget_bytecode(place)

    def _place(self) -> Folder:
        return Folder.at(self.target.parent)

    def _remove(self) -> None:
        with contextlib.suppress(*_ABSENT), self._place() as place:
            place.unlink(self.target.name)
            self._forget_bytecode(place)

    # Bytecode ---------------------------------------------------------------------------------

    def check_bytecode(self) -> None:
        """Refuse bytecode that could not be removed: unchecked, it would outlive its source."""
        with (
            contextlib.suppress(*_ABSENT),
            self._place() as place,
            place.enter("__pycache__") as cached,
        ):
            stale = [*filter(self._is_compiled, cached.names())]
            if stale and not cached.is_writable():
                raise Refused(
                    f"{cached.path / stale[0]} is bytecode of a file that is to change, and this "
                    "user may not remove it\n"
                    f"remove it as the user who may: sudo rm -r {cached.path}"
                )

    def _is_compiled(self, name: str) -> bool:
        return self.target.suffix == ".py" and name.startswith(f"{self.target.stem}.")

    def _forget_bytecode(self, place: Folder) -> None:
        # Unchecked bytecode, which images compile, would outlive the source that it stands for.
        # What came there since the check, and cannot be removed, does not hold up the move.
        with contextlib.suppress(OSError, Refused), place.enter("__pycache__") as cached:
            for name in filter(self._is_compiled, cached.names()):
                cached.unlink(name)


def own(handle: int, owner: Owner) -> list[str]:
    """Give an open file or folder its owner and mode; what could not be given."""
    found, lost, mode = os.fstat(handle), list[str](), owner.mode
    if found.st_uid != owner.uid:
        with _may_fail(lost, "the owner"):
            os.fchown(handle, owner.uid, -1)
    if found.st_gid != owner.gid:
        with _may_fail(lost, "the group"):
            os.fchown(handle, -1, owner.gid)
    if lost:
        mode &= ~_ANOTHERS_RIGHTS  # they would be those of somebody else now
    if stat.S_IMODE(os.fstat(handle).st_mode) != mode:  # after chown, which clears bits
        with _may_fail(lost, "the mode"):
            os.fchmod(handle, mode)
    return lost


def copied_attributes(place: Folder, name: str, handle: int) -> list[str]:
    """Give an open file the extended attributes of another; those that could not be given."""
    lost, attributes = list[str](), list[str]()
    if not hasattr(os, "listxattr") or not place.stat(name):
        return lost
    with place.opened(name) as old:
        with contextlib.suppress(OSError):  # a file system that has none
            attributes = os.listxattr(old)
        for attribute in attributes:
            with _may_fail(lost, f"the attribute {attribute}"):
                if attribute in _OF_THE_CONTENT:
                    raise OSError(errno.EPERM, "belongs to the old content")
                os.setxattr(handle, attribute, os.getxattr(old, attribute))
    return lost


@contextlib.contextmanager
def _may_fail(lost: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        if fault.errno not in _NOT_KEPT:
            raise
        lost.append(what)


def _blob_at(place: Folder, name: str) -> str | None:
    try:
        return blob_id(place.read(name))
    except FileNotFoundError:
        return None
