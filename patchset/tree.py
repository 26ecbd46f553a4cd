"""Where an sglang tree lies and what its files hold; nothing of it is ever imported."""

import ast
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from patchset.errors import Refused

# A file that is being written, beside the one it will replace.
STAGED = ".rocm_patches"


class Tree(NamedTuple):
    package: Path  # the real folder of the package `sglang`

    @property
    def root(self) -> Path:
        return self.package.parent

    def file(self, path: str) -> Path:
        """`path` is relative to the folder that holds `sglang`, whatever that is called here."""
        first, _, rest = path.partition("/")
        return self.package / rest if first == "sglang" else self.root / path

    def read(self, path: str) -> bytes | None:
        try:
            return self.file(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as fault:
            raise Refused(f"cannot read {self.file(path)}: {fault.strerror}") from fault

    def files(self, folder: str) -> list[str]:
        """The paths of all files below `folder`, without bytecode and files being written."""
        top = self.file(folder)
        return sorted(
            f"{folder}/{os.path.relpath(os.path.join(where, name), top)}"
            for where, _, names in os.walk(top)
            for name in names
            if os.path.basename(where) != "__pycache__" and not name.endswith(STAGED)
        )

    def records(self) -> list[str]:
        """The RECORD files beside the package of distributions that may own it."""
        return sorted(
            f"{found.parent.name}/RECORD" for found in self.root.glob("*sglang*.dist-info/RECORD")
        )

    def version(self) -> str | None:
        """What the tree calls itself. For prose only: images and forks call themselves anything."""
        for info in sorted(self.root.glob("*sglang-*.dist-info")):
            return info.name.removesuffix(".dist-info").partition("-")[2]
        try:
            text = (self.package / "_version.py").read_text()
        except OSError:
            return None
        found = re.search(r"^__version__ = version = ['\"](.+)['\"]", text, re.MULTILINE)
        return found[1] if found else None


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


def _pointed_at(folder: Path) -> Iterator[Path]:
    for finder in sorted(folder.glob("__editable___*sglang*_finder.py")):
        mapping = re.search(r"^MAPPING\b[^=]*= (\{.*?\})", finder.read_text(), re.M | re.S)
        target = ast.literal_eval(mapping[1]).get("sglang") if mapping else None
        if target:
            yield Path(target)
    for links in sorted(folder.glob("*.pth")):
        for line in links.read_text(errors="replace").splitlines():
            if line.strip() and not line.startswith(("import ", "import\t", "#")):
                yield folder / line.strip() / "sglang"
