#!/usr/bin/env python3
"""Write a patch from an edited tree, or check that every patch is what this writes.

    python3 tools/export.py --release R --slug S --tree DIR   DIR differs from R by S alone
    python3 tools/export.py --check                           re-export all, fail on any byte

The header (everything above the first ``diff --git``) is kept; only the diff is written anew. The
pristine release is fetched into ``build/pristine/`` once.
Exit codes: 0 written or as expected, 1 a difference or no pristine tree, 2 wrong usage.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOUSE))

from patchset import series  # noqa: E402  # the folder above is put on the path first
from patchset.errors import Refused  # noqa: E402  # the folder above is put on the path first
from patchset.fetch import fetched  # noqa: E402

PATCHES = HOUSE / "patches"
DIFF_START = "diff --git "

# Whatever the user's configuration says, a patch has the same bytes on every machine.
GIT_DIFF = [
    "git", "-c", "core.quotepath=true", "-c", "core.safecrlf=false", "diff", "--no-index",
    "--no-ext-diff", "--no-color", "--no-renames", "--full-index", "--unified=3",
    "--diff-algorithm=histogram", "--src-prefix=", "--dst-prefix=",
]  # fmt: skip


def pristine_tree(release: str) -> Path:
    """The unpacked wheel, fetched if need be; never the one that `apply.py --fetch` patches."""
    try:
        return fetched(release, series.load(HOUSE), HOUSE / "build" / "pristine")
    except Refused as refusal:
        raise SystemExit(f"export: {refusal}") from refusal


def python_files(tree: Path) -> set[str]:
    return {
        str(path.relative_to(tree))
        for path in (tree / "sglang").rglob("*.py")
        if "rocm_patches" not in path.parts
    }


def diff(pristine: Path, edited: Path) -> str:
    """The unified diff of the Python files that two trees have in different bytes."""
    changed = []
    for path in sorted(python_files(pristine) | python_files(edited)):
        old, new = pristine / path, edited / path
        if not (old.exists() and new.exists()):
            raise SystemExit(f"export: {path} is in one tree only; new files belong in overlay/")
        if old.read_bytes() != new.read_bytes():
            changed.append(path)
    with tempfile.TemporaryDirectory() as scratch:
        for side, tree in (("a", pristine), ("b", edited)):
            for path in changed:
                target = Path(scratch, side, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(tree / path, target)
                os.chmod(target, 0o644)
        return "".join(
            subprocess.run(
                [*GIT_DIFF, f"a/{path}", f"b/{path}"],
                cwd=scratch, capture_output=True, text=True, check=False,
            ).stdout
            for path in changed
        )  # fmt: skip


def header(patch: Path) -> str:
    text = patch.read_text() if patch.exists() else ""
    return text[: text.index(DIFF_START)] if DIFF_START in text else text


def applied(patch: Path, pristine: Path, scratch: Path) -> Path:
    """A copy of the files that the patch touches, with the patch applied by git."""
    text = patch.read_text()
    for line in text.splitlines():
        if line.startswith("--- a/"):
            path = line.removeprefix("--- a/")
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pristine / path, scratch / path)
    subprocess.run(["git", "apply", "--whitespace=nowarn", patch], cwd=scratch, check=True)
    return scratch


def check() -> int:
    wrong = 0
    for patch in sorted(PATCHES.glob("*/*.patch")):
        pristine = pristine_tree(patch.parent.name)
        with tempfile.TemporaryDirectory() as scratch:
            edited = applied(patch, pristine, Path(scratch))
            touched = {p for p in python_files(pristine) if (edited / p).exists()}
            with tempfile.TemporaryDirectory() as base:
                for path in touched:
                    target = Path(base, path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(pristine / path, target)
                expected = header(patch) + diff(Path(base), edited)
        if expected != patch.read_text():
            print(f"export: {patch.relative_to(HOUSE)} is not what a re-export writes")
            wrong = 1
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="re-export all, fail on any byte")
    parser.add_argument("--release", metavar="R", help="the release that the patch is for")
    parser.add_argument("--slug", metavar="S", help="the patch's name, without .patch")
    parser.add_argument("--tree", type=Path, metavar="DIR", help="the edited tree")
    args = parser.parse_args()
    if args.check:
        return check()
    if not (args.release and args.slug and args.tree):
        parser.error("name --release, --slug and --tree, or --check")
    patch = PATCHES / args.release / f"{args.slug}.patch"
    hooks = diff(pristine_tree(args.release), args.tree)
    if not hooks:
        raise SystemExit(
            f"export: {args.tree} is {args.release} as it was published; nothing written"
        )
    text = header(patch) + hooks
    patch.parent.mkdir(parents=True, exist_ok=True)
    patch.write_text(text)
    print(f"{patch.relative_to(HOUSE)}: {text.count(DIFF_START)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
