#!/usr/bin/env python3
"""Write a patch from an edited tree, or check that every patch is what this writes.

    python3 tools/export.py --release R --slug S --tree DIR   what DIR has of S, edited or not
    python3 tools/export.py --check                           re-export all, fail on any byte

Other patches that are on in DIR, including the self-report's, are left out, with a message. The
header (everything above the first ``diff --git``) is kept. A new slug gets a header to fill in and
its line in ``series``. The pristine release is fetched into ``build/pristine/`` once.
Exit codes: 0 written or as expected, 1 --check finds a difference, 2 wrong usage or refused, and
nothing was written.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOUSE))

from ci.entry import DONE, WRONG, Stop, run  # noqa: E402  # the folder above is on the path
from patchset import manifest, series  # noqa: E402
from patchset.diff import Edit, neighbours, parse, split  # noqa: E402
from patchset.fetch import fetched  # noqa: E402

PATCHES = HOUSE / "patches"
SLUG = r"[a-z0-9]+(-[a-z0-9]+)*"
# What the author has to say is left open; tools/lint.py refuses a `?`.
HEADER = """Subject: ?
Slug: {slug}
Upstream-PR: ?
Upstream-Status: ?
Numerics: ?
Switch: SGLANG_ROCM_PATCH_{switch}
Requires:
Hardware: ?
Fixes: none

"""
DIFF_START = "diff --git "
MARKER = re.compile(rb"^(<<<<<<<|>>>>>>>) ", re.M)

# Whatever the user's configuration says, a patch has the same bytes on every machine.
GIT_DIFF = [
    "git", "-c", "core.quotepath=true", "-c", "core.safecrlf=false", "diff", "--no-index",
    "--no-ext-diff", "--no-color", "--no-renames", "--full-index",
    "--diff-algorithm=histogram", "--src-prefix=", "--dst-prefix=",
]  # fmt: skip


def pristine_tree(release: str) -> Path:
    """The unpacked wheel, fetched if need be; never the one that `apply.py --fetch` patches."""
    return fetched(release, series.load(HOUSE), HOUSE / "build" / "pristine")


def python_files(tree: Path) -> set[str]:
    return {
        str(path.relative_to(tree))
        for path in (tree / "sglang").rglob("*.py")
        if "rocm_patches" not in path.parts
    }


def changed_files(pristine: Path, edited: Path) -> list[str]:
    """The Python files of `edited`, all of a tree's or the touched alone, in other bytes."""
    changed = []
    for path in sorted(python_files(edited)):
        old, new = pristine / path, edited / path
        if not old.exists():
            raise Stop(f"{path} is in one tree only; new files belong in overlay/")
        text = new.read_bytes()
        if MARKER.search(text):
            raise Stop(f"{new} has a conflict between markers: decide it first")
        if old.read_bytes() != text:
            changed.append(path)
    return changed


def diff(pristine: Path, edited: Path, changed: list[str], context: int = 3) -> str:
    """The unified diff of these files, the same bytes whatever else the trees hold."""
    with tempfile.TemporaryDirectory() as scratch:
        for side, tree in (("a", pristine), ("b", edited)):
            for path in changed:
                target = Path(scratch, side, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(tree / path, target)
                os.chmod(target, 0o644)
        return "".join(
            subprocess.run(
                [*GIT_DIFF, f"--unified={context}", f"a/{path}", f"b/{path}"],
                cwd=scratch, capture_output=True, text=True, check=False,
            ).stdout
            for path in changed
        )  # fmt: skip


# What is on in a tree beside the slug ---------------------------------------------------------


def without_others(
    release: series.Release, slug: str, pristine: Path, tree: Path, scratch: Path
) -> tuple[list[str], list[str]]:
    """The files in which the tree has the slug, written to `scratch` with it alone; the others."""
    changed = changed_files(pristine, tree)
    told = diff(pristine, tree, changed, context=0)
    edits = {each.path: each.edits() for each in parse(told.encode())} if told else {}
    others = [patch for patch in release.every if patch.slug != slug]
    on = [patch for patch in others if is_on(patch, edits)]
    for patch in on:
        for path, theirs in patch.diffs.items():
            edits[path] = [edit for edit in edits[path] if edit not in theirs.edits()]
    for path, left in edits.items():
        target = scratch / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(edited((pristine / path).read_bytes(), left))
    return [path for path in changed if edits[path]], [patch.slug for patch in on]


def is_on(patch: series.Patch, found: dict[str, list[Edit]]) -> bool:
    """Whether all edits of a patch are in the tree; some of them are no state that is known."""
    asked = [(path, edit) for path, theirs in patch.diffs.items() for edit in theirs.edits()]
    there = [edit in found.get(path, ()) for path, edit in asked]
    if any(there) and not all(there):
        path, edit = asked[there.index(False)]
        raise Stop(
            f"{patch.slug} is on in part: {path} lacks its change at line {edit.start + 1} of the "
            f"release\nturn it off first, in a tree that you have not edited yet: "
            f"{sys.executable} {HOUSE / 'apply.py'} revert {patch.slug} --tree ..."
        )
    return all(there)


def edited(pristine: bytes, edits: list[Edit]) -> bytes:
    lines = split(pristine)
    for edit in reversed(edits):
        lines[edit.start : edit.end] = edit.new
    return b"".join(lines)


def check_neighbours(release: series.Release, slug: str, hooks: str) -> None:
    """What every command would refuse as a damaged patch set is not written."""
    for mine in parse(hooks.encode()):
        for other in release.touching(mine.path):
            if other.slug == slug:
                continue
            if line := neighbours(mine, other.diffs[mine.path]):
                raise Stop(
                    f"{slug} would touch or neighbour {other.slug} at {mine.path}:{line} of the "
                    "release; leave one untouched line between them"
                )


# What is written -------------------------------------------------------------------------------


def header(patch: Path) -> str:
    """The patch's own, that of the slug in another release, or one to fill in."""
    for kept in (patch, *sorted(PATCHES.glob(f"*/{patch.name}"), reverse=True)):
        if kept.exists() and DIFF_START in kept.read_text():
            text = kept.read_text()
            return text[: text.index(DIFF_START)]
    switch = patch.stem.upper().replace("-", "_")
    return HEADER.format(slug=patch.stem, switch=switch)


def add_to_series(patch: Path) -> bool:
    """Whether the slug is new in the release."""
    listed = patch.parent / "series"
    if patch.stem in (series.SELF_REPORT, *listed.read_text().split()):
        return False
    listed.write_text(listed.read_text().rstrip("\n") + f"\n{patch.stem}\n")
    return True


def export(given: argparse.Namespace) -> int:
    release = series.load(HOUSE).releases.get(given.release)
    if release is None:
        known = ", ".join(series.load(HOUSE).releases)
        raise Stop(f"--release {given.release} has no series; there are {known}")
    if not re.fullmatch(SLUG, given.slug):
        raise Stop(f"--slug {given.slug!r}: lower case, digits and single hyphens")
    if not (given.tree / "sglang").is_dir():
        raise Stop(f"--tree {given.tree}: there is no sglang in it; name the folder that holds it")
    pristine = pristine_tree(given.release)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        changed, others = without_others(release, given.slug, pristine, given.tree, scratch)
        hooks = diff(pristine, scratch, changed)
    beside = f" beside {', '.join(others)}" if others else ""
    if not hooks:
        raise Stop(f"{given.tree} has nothing{beside} that {given.release} has not")
    check_neighbours(release, given.slug, hooks)
    whole = not manifest.wrong(HOUSE)
    patch = PATCHES / given.release / f"{given.slug}.patch"
    patch.write_text(header(patch) + hooks)
    new = add_to_series(patch)
    name = patch.relative_to(HOUSE)
    print(f"{name}: {len(changed)} files" + (f"; left out: {', '.join(others)}" if others else ""))
    if new:
        print(f"{name.parent}/series: {given.slug}; fill in the header: python3 tools/lint.py")
    if whole:
        manifest.write(HOUSE)
    else:
        print(f"{manifest.MANIFEST} was not up to date before: python3 tools/manifest.py")
    return DONE


# That every patch is one of these -------------------------------------------------------------


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
    wrong = DONE
    for patch in sorted(PATCHES.glob("*/*.patch")):
        pristine = pristine_tree(patch.parent.name)
        with tempfile.TemporaryDirectory() as scratch:
            edited = applied(patch, pristine, Path(scratch))
            changed = changed_files(pristine, edited)
            expected = header(patch) + diff(pristine, edited, changed)
        if expected != patch.read_text():
            print(f"export: {patch.relative_to(HOUSE)} is not what a re-export writes")
            wrong = WRONG
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
    return export(args)


if __name__ == "__main__":
    sys.exit(run("export", main))
