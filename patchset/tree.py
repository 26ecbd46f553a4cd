"""Where an sglang tree lies and what its files hold; nothing of it is ever imported."""

import ast
import contextlib
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from patchset import folder
from patchset.errors import Refused
from patchset.folder import Folder

# A file that is being written, beside the one it will replace.
STAGED = ".rocm_patches"


class Tree(NamedTuple):
    package: Path  # the real folder of the package `sglang`

    @property
    def root(self) -> Path:
        return self.package.parent

    def file(self, path: str) -> Path:
        """`path` is relative to the folder that holds `sglang`, whatever that is called here."""
        if not is_inside(path):
            raise Refused(f"{path!r} does not lie in the tree; nothing was done with it")
        first, _, rest = path.partition("/")
        return self.package / rest if first == "sglang" else self.root / path

    def read(self, path: str) -> bytes | None:
        with _said_of_reading():
            return folder.read(self.file(path))
        return None

    def refuse_others_rights(self, path: str) -> None:
        """Refuse a file that runs with rights of its own: other bytes must not get them."""
        file = self.file(path)
        with _said_of_reading(), Folder.at(file.parent) as place:
            found = place.stat(file.name)
            if found and found.st_mode & (stat.S_ISUID | stat.S_ISGID):
                raise Refused(
                    f"{file} has a set-user-id or set-group-id bit, which no file of sglang needs\n"
                    f"take it away: chmod ug-s {file}"
                )

    def files(self, below: str) -> list[str]:
        """The paths of all that lies below a folder, but bytecode and files being written."""
        top = self.file(below)
        with _said_of_reading():
            return sorted(
                f"{below}/{(place.path / name).relative_to(top).as_posix()}"
                for place, name in folder.walk(top)
                if place.path.name != "__pycache__" and not name.endswith(STAGED)
            )
        return []

    def records(self) -> list[str]:
        """The RECORD files beside the package of distributions that may own it."""
        names = self._metadata("sglang")
        with _said_of_reading(), Folder.at(self.root) as root:
            return [f"{name}/RECORD" for name in names if _has_record(root, name)]
        return []

    def version(self) -> str | None:
        """What the tree calls itself. For prose only: images and forks call themselves anything."""
        for info in self._metadata("sglang-"):
            return info.removesuffix(".dist-info").partition("-")[2]
        text = (self.read("sglang/_version.py") or b"").decode(errors="replace")
        found = re.search(r"^__version__ = version = ['\"](.+)['\"]", text, re.MULTILINE)
        return found[1] if found else None

    def _metadata(self, part: str) -> list[str]:
        with _said_of_reading(), Folder.at(self.root) as root:
            return [name for name in root.names() if part in name and name.endswith(".dist-info")]
        return []


def _has_record(root: Folder, metadata: str) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), root.enter(metadata) as found:
        return found.stat("RECORD") is not None
    return False


@contextlib.contextmanager
def _said_of_reading() -> Iterator[None]:
    """What is not there is passed over; what cannot be read is a refusal."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as fault:
        raise Refused(f"cannot read {fault.filename}: {fault.strerror}") from fault


def is_inside(path: str) -> bool:
    """Whether `path`, read from who knows where, is a plain relative path without ways out."""
    parts = path.split("/")
    return "\0" not in path and not {"", ".", ".."} & {*parts}


def at(path: str) -> Tree:
    """The tree at a checkout, its `python/`, a site-packages or the package itself."""
    given = Path(path)
    places = [given, given / "sglang", given / "python" / "sglang"]
    package = next((place for place in places if _is_package(place)), None) or _editable([given])
    if not package:
        raise Refused(
            f"no sglang at {given}\n--tree takes a checkout of sglang, its python/, "
            "a site-packages, or the package folder sglang itself"
        )
    return Tree(package.resolve())


def imported(search: Iterable[str]) -> Tree:
    """The sglang that an interpreter with this `sys.path` would import."""
    folders = [Path(entry) for entry in search]
    package = next((f / "sglang" for f in folders if _is_package(f / "sglang")), None)
    package = package or _editable(folders)
    if not package:
        raise Refused(
            "this Python has no sglang\n"
            "name a tree with --tree PATH, run apply.py with the Python that has sglang, "
            "or download a release with --fetch RELEASE"
        )
    return Tree(package.resolve())


def _is_package(folder: Path) -> bool:
    # A checkout called `sglang` beside the search path is a namespace package without __init__.
    return (folder / "__init__.py").is_file() and (folder / "srt").is_dir()


def _editable(folders: Iterable[Path]) -> Path | None:
    """The package that an editable install in one of `folders` points at."""
    return next((p for f in folders for p in _pointed_at(f) if _is_package(p)), None)


def _pointed_at(site: Path) -> Iterator[Path]:
    names = _names(site)
    for name in names:
        if re.fullmatch(r"__editable___.*sglang.*_finder\.py", name):
            mapping = re.search(r"^MAPPING\b[^=]*= (\{.*?\})", _text(site / name), re.M | re.S)
            target = _literal(mapping[1]).get("sglang") if mapping else None
            if isinstance(target, str):
                yield Path(target)
    for name in names:
        for line in _text(site / name).splitlines() if name.endswith(".pth") else ():
            if line.strip() and not line.startswith(("import ", "import\t", "#")):
                yield site / line.strip() / "sglang"


def _names(site: Path) -> list[str]:
    try:
        with Folder.at(site.resolve()) as found:
            return found.names()
    except OSError:  # such as an entry of sys.path that is a zip file, or no more there
        return []


def _text(file: Path) -> str:
    """As Python does when it starts, without a word about what cannot be read."""
    try:
        return folder.read(file.resolve()).decode(errors="replace")
    except (OSError, Refused, RuntimeError):  # the last: a link that leads to itself
        return ""


def _literal(text: str) -> dict[object, object]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}
