"""The sglang trees of the arms: a release as published, and with the whole series applied."""

import functools
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from patchset import manifest, series
from patchset.fetch import fetched

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"

RELEASES = list(series.load(ROOT).releases)  # the newest last

# A tree to take for the patched one, for example with a fault put in: `--patched-tree`.
given_instead: Path | None = None


@functools.cache
def pristine_tree(release: str) -> Path:
    """The unpacked wheel, fetched if need be: not the one in build/ that users patch by --fetch."""
    home = BUILD / "pristine" / f"sglang-{release}"
    return home if home.is_dir() else fetched(release, series.load(ROOT), home.parent)


def patched_tree(release: str) -> Path:
    return given_instead or _series_applied(release)


def slugs(release: str) -> tuple[str, ...]:
    return tuple((ROOT / "patches" / release / "series").read_text().split())


def slug_of(module) -> str:
    """The slug that a module of tests is about, of its own or by its name."""
    return getattr(module, "SLUG", module.__name__.rpartition(".test_")[2].replace("_", "-"))


def packages(release: str) -> Path | None:
    """What the release needs in other versions than the environment has; see ci/environment.sh."""
    folder = BUILD / f"packages-{release}"
    return folder if folder.is_dir() else None


@functools.cache
def _series_applied(release: str) -> Path:
    """A patched copy, made anew when patches or overlay have changed."""
    sources = sorted([*ROOT.glob(f"patches/{release}/*"), *ROOT.glob("overlay/**/*.py")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    tree = BUILD / "trees" / f"sglang-{release}-{digest[:16]}"
    if not tree.is_dir():
        tree.parent.mkdir(parents=True, exist_ok=True)
        manifest.write(ROOT)  # whoever edits the set here and tests it means the edit
        with tempfile.TemporaryDirectory(dir=tree.parent) as folder:
            made = Path(folder, "tree")
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(pristine_tree(release), made, ignore=ignored)
            command = [sys.executable, ROOT / "apply.py", "apply", "--tree", made]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{release} could not be patched: {done.stdout}{done.stderr}")
            try:
                made.rename(tree)
            except OSError:  # not empty: another worker was faster
                if not tree.is_dir():
                    raise
    return tree
