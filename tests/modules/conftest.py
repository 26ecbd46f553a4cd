"""Arms: upstream's modules pristine, patched, and patched with every switch off.

arms        .pristine, .patched and .off: each a tests.platform.arm.Arm on the test's platform
either_arm  the pristine one, then the patched one
"""

import functools
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.platform.arm import Arm
from tests.platform.value import Platform

ROOT = Path(__file__).resolve().parents[2]
RELEASES = ["0.5.10.post1"]


def pristine_tree(release: str) -> Path:
    tree = ROOT / "build" / f"sglang-{release}"
    if not tree.is_dir():
        pytest.fail(f"no {tree}; python3 apply.py status --fetch {release} fetches it")
    return tree


@functools.cache
def patched_tree(release: str) -> Path:
    """The whole series applied to a copy, which is made anew when the set has changed."""
    sources = sorted([*ROOT.glob(f"patches/{release}/*"), *ROOT.glob("overlay/**/*.py")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    tree = ROOT / "build" / "trees" / f"sglang-{release}-{digest[:16]}"
    if not tree.is_dir():
        tree.parent.mkdir(exist_ok=True)
        unfinished = tree.with_name(f"{tree.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(pristine_tree(release), unfinished, ignore=ignored)
        command = [sys.executable, ROOT / "apply.py", "apply", "--tree", unfinished]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        unfinished.rename(tree)
    return tree


@dataclass(frozen=True)
class Arms:
    release: str
    platform: Platform

    @property
    def pristine(self) -> Arm:
        return _arm(pristine_tree(self.release), self.platform)

    @property
    def patched(self) -> Arm:
        return _arm(patched_tree(self.release), self.platform)

    @property
    def off(self) -> Arm:
        return _arm(patched_tree(self.release), self.platform, SGLANG_ROCM_PATCHES="0")

    def patched_with(self, **switches: str) -> Arm:
        return _arm(patched_tree(self.release), self.platform, **switches)


@functools.cache
def _arm(tree: Path, platform: Platform, **switches: str) -> Arm:
    """Each process serves the whole session; it ends with it."""
    return Arm(tree, platform, **switches)


@pytest.fixture(params=RELEASES)
def arms(request, platform) -> Arms:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("sglang's own requirements are not installed: ci/requirements.txt")
    return Arms(request.param, platform)


@pytest.fixture(params=["pristine", "patched"])
def either_arm(request, arms) -> Arm:
    return getattr(arms, request.param)
