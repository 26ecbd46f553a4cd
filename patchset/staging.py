"""Replacing one file: the new one is made whole beside it, then renamed over it."""

import contextlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from patchset.diff import blob_id
from patchset.tree import STAGED


class Owner(NamedTuple):
    mode: int
    uid: int
    gid: int

    @classmethod
    def of(cls, path: Path) -> "Owner":
        found = path.lstat()
        return cls(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


class Step(NamedTuple):
    """One file of a change, as the journal's plan has it."""

    target: Path
    before: str | None  # blob ids; None: no such file
    after: str | None
    owner: Owner

    @property
    def staged(self) -> Path:
        return self.target.with_name(f".{self.target.name}{STAGED}")

    def can_finish(self) -> bool:
        now = _blob_at(self.target)
        ready = self.after is None or _blob_at(self.staged) == self.after
        return now == self.after or (now == self.before and ready)

    def finish(self) -> None:
        if self.after is None:
            self.target.unlink(missing_ok=True)
        elif self.staged.exists():
            self.staged.replace(self.target)
        self._forget_bytecode()

    def forget(self) -> None:
        self.staged.unlink(missing_ok=True)

    def put_back(self, before: bytes | None) -> None:
        self.forget()
        if _blob_at(self.target) != self.after:
            return
        if before is None:
            self.target.unlink(missing_ok=True)
        else:
            create(self.staged, before, self.owner)
            self.staged.replace(self.target)
        self._forget_bytecode()

    def _forget_bytecode(self) -> None:
        # Unchecked bytecode, which images compile, would outlive the source that it stands for.
        cached = self.target.parent / "__pycache__"
        if self.target.suffix == ".py" and cached.is_dir():
            for compiled in cached.iterdir():
                if compiled.name.startswith(f"{self.target.stem}."):
                    compiled.unlink()


def create(path: Path, data: bytes, owner: Owner | None = None) -> None:
    """A new file that is on the disk when this returns."""
    path.unlink(missing_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(file, "wb") as out:
            out.write(data)
            out.flush()
            if owner:
                own(file, owner)
            os.fsync(file)
    except OSError as fault:
        with contextlib.suppress(OSError):
            path.unlink()
        # Neither a full disk nor a refused owner says by itself which file it was.
        raise OSError(fault.errno, fault.strerror, str(path)) from fault


def own(target: int | Path, owner: Owner) -> None:
    found = os.stat(target)
    if (found.st_uid, found.st_gid) != (owner.uid, owner.gid):
        os.chown(target, owner.uid, owner.gid)
    os.chmod(target, owner.mode)  # after chown, which clears bits


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _blob_at(path: Path) -> str | None:
    try:
        return blob_id(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
