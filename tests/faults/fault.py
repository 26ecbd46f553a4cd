"""A fault, and a copy of the project that has it."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.platform.trees import BUILD, ROOT, patched_tree

OVERLAY = "sglang/srt/rocm_patches"


@dataclass(frozen=True)
class Fault:
    name: str
    slug: str
    path: str  # in the tree; a bare file name is one of the overlay
    old: str  # found exactly once
    new: str
    arch: str = "gfx942"
    release: str = "0.5.10.post1"
    platform: str = "cpu"  # or "cuda", for what is stood in for on a CPU
    tests: str | None = None  # the file that has to catch it, where not the cheapest layer

    @property
    def change(self) -> str:
        """A short name for what is put in where: a verdict is of that change alone."""
        said = (self.file, self.old, self.new, self.arch, self.release, self.platform)
        return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]

    @property
    def file(self) -> str:
        return self.path if "/" in self.path else f"{OVERLAY}/{self.path}"

    def put_into(self, text: str) -> str:
        found = text.count(self.old)
        if found != 1:
            raise LookupError(f"{self.name}: {found} times in {self.file}:\n{self.old}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class House:
    """A copy of the tests, the overlay and the patched tree, the latter two with the fault."""

    root: Path

    @property
    def tree(self) -> Path:
        return self.root / "tree"


@contextlib.contextmanager
def house_with(fault: Fault):
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="fault-") as folder:
        house = House(Path(folder))
        shutil.copytree(patched_tree(fault.release), house.tree, copy_function=os.link)
        faulty = house.tree / fault.file
        text = fault.put_into(faulty.read_text())
        faulty.unlink()  # a link: the patched tree keeps its file
        faulty.write_text(text)
        shutil.copytree(house.tree / OVERLAY, house.root / "overlay" / OVERLAY)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "tests", house.root / "tests", ignore=ignored)
        shutil.copytree(ROOT / "patches", house.root / "patches")  # no link to it is followed
        for entry in ROOT.iterdir():  # the rest as it is
            if entry.name not in ("tests", "overlay", "patches", ".git"):
                (house.root / entry.name).symlink_to(entry)
        try:
            yield house
        finally:  # see tests.platform.emulation
            shutil.rmtree(f"{BUILD / 'bytecode'}{folder}", ignore_errors=True)
