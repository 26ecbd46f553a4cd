"""The only module that opens paths: by folder descriptors, links never followed, files only.

The tool may run as root on a tree that another user can write. So each part of a path is opened
by itself with O_NOFOLLOW, from the root of the file system down, and what is changed is changed
in a folder that is open, whatever becomes of its name meanwhile. A FIFO or a device is refused
before it is opened: opening one may wait for ever, or do something.
"""

import contextlib
import errno
import os
import shlex
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from patchset.errors import Refused

# No file of a release, and no wheel, is nearly as large.
LARGEST = 256 * 2**20

# Passing through a folder needs no right to list it, where the system can tell the two apart.
_PASS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}


class Folder(contextlib.AbstractContextManager["Folder"]):
    """An open folder. Every name given to it is the name of something directly in it."""

    def __init__(self, handle: int, path: Path):
        self.handle = handle
        self.path = path  # for messages only

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """The folder at an absolute path that has no link in it."""
        here = cls(os.open(path.anchor, _PASS), Path(path.anchor))
        for name in path.parts[1:]:
            with here:
                here = here.enter(name)
        return here

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.handle)

    def enter(self, name: str) -> "Folder":
        try:
            return Folder(os.open(_plain(name), _PASS, dir_fd=self.handle), self.path / name)
        except OSError as fault:
            if fault.errno in (errno.ENOTDIR, errno.ELOOP):
                self._refuse_link(name)
            raise self._named(fault, name) from fault

    # Reading ---------------------------------------------------------------------------------

    def stat(self, name: str) -> os.stat_result | None:
        """What is there, a link as itself; None where there is nothing."""
        try:
            return os.stat(_plain(name), dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise self._named(fault, name) from fault

    def is_folder(self, name: str) -> bool:
        found = self.stat(name)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def is_file(self, name: str) -> bool:
        found = self.stat(name)
        return found is not None and stat.S_ISREG(found.st_mode)

    def itself(self) -> os.stat_result:
        return os.fstat(self.handle)

    def is_writable(self) -> bool:
        """Whether this user may make and remove things in it."""
        ids = os.access in os.supports_effective_ids
        return os.access(".", os.W_OK | os.X_OK, dir_fd=self.handle, effective_ids=ids)

    def names(self) -> list[str]:
        with self._listed() as handle:
            return sorted(os.listdir(handle))

    def read(self, name: str) -> bytes:
        with self.opened(name) as handle, os.fdopen(os.dup(handle), "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise Refused(f"{self.path / name} is larger than any file of sglang: look what it is")
        return data

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """The descriptor of a regular file, for reading."""
        self._refuse_irregular(name, self.stat(name))
        try:
            handle = os.open(name, _READ, dir_fd=self.handle)
        except OSError as fault:
            raise self._named(fault, name) from fault
        try:
            self._refuse_irregular(name, os.fstat(handle))
            yield handle
        finally:
            os.close(handle)

    # Changing --------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        data: bytes,
        prepare: Callable[[int], None] | None = None,
        *,
        sync: bool = True,
        mode: int = 0o600,
    ) -> None:
        """A new file that is whole, and on the disk, when this returns."""
        self.unlink(name)
        try:
            with os.fdopen(os.open(name, _NEW, mode, dir_fd=self.handle), "wb") as out:
                out.write(data)
                out.flush()
                if prepare:
                    prepare(out.fileno())
                if sync:
                    os.fsync(out.fileno())
        except OSError as fault:
            with contextlib.suppress(OSError):
                self.unlink(name)
            # Neither a full disk nor a refused owner says by itself which file it was.
            raise self._named(fault, name) from fault

    def locked_file(self, name: str) -> int:
        """The descriptor of a file to lock, which is made if need be."""
        try:
            return os.open(
                _plain(name),
                os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                0o644,
                dir_fd=self.handle,
            )
        except OSError as fault:
            raise self._named(fault, name) from fault

    def make(
        self, name: str, prepare: Callable[[int], None] | None = None, *, sync: bool = True
    ) -> None:
        """A folder, which is known to the disk when this returns if it had to be made."""
        try:
            os.mkdir(_plain(name), 0o755, dir_fd=self.handle)
            if prepare:
                with self.enter(name) as made, made._listed() as handle:
                    if os.fstat(handle).st_uid == os.geteuid():  # still the one that was made
                        prepare(handle)
        except FileExistsError:
            return
        except OSError as fault:
            raise self._named(fault, name) from fault
        if sync:
            self.sync()

    def rename(self, name: str, new: str, into: "Folder | None" = None) -> None:
        there = into or self
        try:
            os.rename(_plain(name), _plain(new), src_dir_fd=self.handle, dst_dir_fd=there.handle)
        except OSError as fault:
            raise there._named(fault, new) from fault

    def unlink(self, name: str) -> None:
        """The file goes, if it is there."""
        try:
            os.unlink(_plain(name), dir_fd=self.handle)
        except FileNotFoundError:
            pass
        except OSError as fault:
            raise self._named(fault, name) from fault

    def remove(self, name: str) -> None:
        """The empty folder goes."""
        try:
            os.rmdir(_plain(name), dir_fd=self.handle)
        except OSError as fault:
            raise self._named(fault, name) from fault

    def sync(self) -> None:
        """What was made, renamed and removed in it is on the disk when this returns."""
        with self._listed() as handle:
            os.fsync(handle)

    # -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _listed(self) -> Iterator[int]:
        """The folder open for more than passing through."""
        try:
            handle = os.open(".", _LIST, dir_fd=self.handle)
        except OSError as fault:
            raise self._named(fault) from fault
        try:
            yield handle
        finally:
            os.close(handle)

    def _named(self, fault: OSError, name: str = "") -> OSError:
        return OSError(fault.errno, fault.strerror, str(self.path / name))

    def _refuse_irregular(self, name: str, found: os.stat_result | None) -> None:
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / name))
        if stat.S_ISLNK(found.st_mode):
            self._refuse_link(name)
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
            raise Refused(
                f"cannot read {self.path / name}: it is {kind}, and a regular file belongs there\n"
                f"move it away: mv {self.path / name} {self.path / name}.not-a-file"
            )

    def _refuse_link(self, name: str) -> None:
        try:
            real = os.readlink(name, dir_fd=self.handle)
        except OSError:  # not a link: the caller has something else to say
            return
        link, real = self.path / name, os.path.join(self.path, real)
        paths = shlex.join([real, str(link)])
        if os.path.isdir(real):
            own = f"a folder of its own: rm {shlex.quote(str(link))} && cp -r {paths}"
        else:
            own = f"a file of its own: cp --remove-destination {paths}"
        raise Refused(
            f"{link} is a symbolic link to {real}, which other trees may share, so it is not "
            f"followed\nmake it {own}"
        )


def read(path: Path) -> bytes:
    """The regular file at an absolute path that has no link in it."""
    with Folder.at(path.parent) as folder:
        return folder.read(path.name)


def made(top: Path, names: Sequence[str], prepare: Callable[[int], None] | None = None) -> Folder:
    """The folder that `names` lead to below `top`, made on the way where it is not there."""
    here = Folder.at(top)
    for name in names:
        with here:
            here.make(name, prepare)
            here = here.enter(name)
    return here


def walk(top: Path) -> Iterator[tuple[Folder, str]]:
    """Everything below `top` that is no folder, each with the open folder that holds it."""
    with Folder.at(top) as folder:
        yield from _walked(folder)


def _walked(folder: Folder) -> Iterator[tuple[Folder, str]]:
    for name in folder.names():
        if folder.is_folder(name):
            with folder.enter(name) as below:
                yield from _walked(below)
        else:
            yield folder, name


@contextlib.contextmanager
def scratch(within: Path, prefix: str) -> Iterator[Path]:
    """A folder for a while, which nobody else may enter; `within` is made if need be."""
    within.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=within) as made:
        yield Path(made)


def _plain(name: str) -> str:
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"{name!r} is not the name of something in a folder")
    return name
