#!/usr/bin/env python3
"""Carry the patches to another release: all that needs no thinking, and one page of what is left.

    python3 tools/port.py RELEASE              fetch it, place every hunk, write its series, test
    python3 tools/port.py NAME --tree PATH     the same for a tree that is no release, untested
    python3 tools/port.py RELEASE --no-tests   place only

Hunks come from the nearest older release with a series (`--from R`: from R). What two releases
changed in one place is left between markers below build/port/RELEASE/SLUG/: decide it there and run
this again. A patch that patches/RELEASE/ has already is left as it is; delete it to place it anew.
docs/porting.md is the way, step by step. Exit codes: 0 nothing is left, 1 something is to be
decided or has failed, 2 wrong usage.
"""

import argparse
import collections
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
if str(HOUSE) not in sys.path:
    sys.path.insert(0, str(HOUSE))

from patchset import fetch, manifest, series  # noqa: E402  # the folder above is put on the path first
from patchset.diff import parse, split  # noqa: E402
from patchset.errors import Refused, WrongUsage  # noqa: E402
from patchset.published import version  # noqa: E402
from tools import export, place, predicates  # noqa: E402

# What a release.json says and no wheel does.
BY_HAND = ("aiter", "tilelang")


class Port:
    """One release's port: the tree, where its series is written, and what became of each slug."""

    def __init__(self, release: str, tree: Path, source: series.Release, house: Path = HOUSE):
        self.release, self.tree, self.source, self.house = release, tree, source, house
        self.folder = house / "patches" / release
        self.work = house / "build" / "port" / release
        self.done: list[str] = []
        self.decide: list[str] = []
        self.failed: list[str] = []
        self.upstream: dict[str, str] = {}

    def page(self, seconds: float) -> str:
        lines = [f"sglang {self.release}, hunks of {self.source.name}, {seconds:.0f} s"]
        for head, told in (
            ("done", self.done),
            ("to decide", self.decide),
            ("failed", self.failed),
        ):
            lines += ["", head, *(f"  {line}" for line in told or ["nothing"])]
        return "\n".join(lines)

    # The patches -----------------------------------------------------------------------------

    def carry(self) -> None:
        """Write a patch for every slug that the release has not of itself."""
        self.folder.mkdir(parents=True, exist_ok=True)
        taken: dict[str, set[int]] = {}
        for slug, patch in self._patches().items():
            state = self._state(slug)
            path = self.folder / f"{slug}.patch"
            if state and state.name == predicates.SUPERSEDED:
                self.upstream[slug] = state.by
                self.done.append(f"{slug}: superseded by {state.by}; no hunk")
            elif path.exists():
                self.done.append(f"{slug}: {self._short(path)} is there already")
            else:
                self._carry_one(patch, path, state, taken)
            if path.exists():
                for diff in parse(path.read_bytes()):
                    lines = {line for edit in diff.edits() for line in (edit.start, edit.end)}
                    taken.setdefault(diff.path, set()).update(lines)
        slugs = [slug for slug in self.source.patches if (self.folder / f"{slug}.patch").exists()]
        (self.folder / "series").write_text("".join(f"{slug}\n" for slug in slugs))

    def _patches(self) -> dict[str, series.Patch]:
        own = self.source.self_report
        return {**self.source.patches, **({own.slug: own} if own else {})}

    def _state(self, slug: str) -> predicates.State | None:
        try:
            return predicates.state(slug, self.tree) if slug in predicates.TABLE else None
        except predicates.MovedError as moved:
            self.decide.append(f"{slug}: tools/predicates.py: {moved}")
            return None

    def _carry_one(
        self,
        patch: series.Patch,
        path: Path,
        state: predicates.State | None,
        taken: dict[str, set[int]],
    ) -> None:
        work, how, lost = self.work / patch.slug, "as decided by hand", list[str]()
        if not work.exists():
            old = place.Release(export.pristine_tree(self.source.name))
            files, placed = place.place(patch.diffs, old, place.Release(self.tree), taken)
            for file, data in files.items():
                (work / file).parent.mkdir(parents=True, exist_ok=True)
                (work / file).write_bytes(data)
            lost = [f"{each.function} of {each.path}" for each in placed if each.how == place.LOST]
            count = collections.Counter(each.how for each in placed)
            how = ", ".join(f"{n} functions: {word}" for word, n in count.items())
        conflicts = list(self._conflicts(work))
        self.decide += [f"{patch.slug}: {where}" for where in conflicts]
        self.decide += [f"{patch.slug}: the release has no {function}" for function in lost]
        if conflicts or lost:
            return
        old_patch = self.house / "patches" / self.source.name / f"{patch.slug}.patch"
        head = export.header(old_patch)
        if state:
            said = f"Upstream-Status: {patch.trailers['Upstream-Status']}\n"
            head = head.replace(said, f"Upstream-Status: {state.trailer}\n")
        path.write_text(head + export.diff(self.tree, work, export.changed_files(self.tree, work)))
        self.done.append(f"{patch.slug}: {self._short(path)} ({how})")
        self.decide.append(f"{patch.slug}: is the header's text right for this release?")

    def _conflicts(self, work: Path) -> Iterator[str]:
        for file in sorted(work.rglob("*.py")):
            for number, line in enumerate(split(file.read_bytes()), 1):
                if line.startswith(place.MARKER):
                    yield f"{self._short(file)}:{number}"

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.house))

    # The release -----------------------------------------------------------------------------

    def describe(self) -> None:
        """release.json: what is known is written, what is by hand there stays."""
        path = self.folder / "release.json"
        said = json.loads(path.read_text()) if path.exists() else {}
        for twin in list(said.get("also", [])):
            different = list(self._different(export.pristine_tree(twin)))
            if different:
                self.decide.append(f"{twin} needs a series of its own: {', '.join(different)}")
                said["also"].remove(twin)
                said["wheels"].pop(twin)
        for slug in self.source.upstream:
            state = self._state(slug)
            self.upstream[slug] = state.by if state else "?"
        said = {"release": self.release, **said, "upstream": self.upstream}
        for key in BY_HAND:
            if not said.get(key):
                self.decide.append(f"{self._short(path)}: which {key} do its images have?")
        path.write_text(json.dumps(said, indent=2) + "\n")

    def _different(self, twin: Path) -> Iterator[str]:
        for patch in sorted(self.folder.glob("*.patch")):
            for diff in parse(patch.read_bytes()):
                if (twin / diff.path).read_bytes() != (self.tree / diff.path).read_bytes():
                    yield diff.path

    def prove(self) -> None:
        """The tool's own checks of the set."""
        manifest.write(self.house)
        try:
            release = series.load(self.house).release(self.release)
            self.done.append(f"patch set {release.digest[:12]}: any subset applies, in any order")
        except Refused as refusal:
            self.failed.append(str(refusal).splitlines()[0])

    def test(self) -> None:
        """Machine code of every kernel for both chips, and the modules of the release."""
        for what, selection in (
            ("kernels as gfx942 and gfx950", ["tests/kernels/test_aot.py"]),
            ("modules as gfx942 and gfx950", ["tests/modules", "--release", self.release]),
            ("patches", ["tests/tool/test_real_series.py", "--release", self.release]),
        ):
            command = [sys.executable, "-m", "pytest", "-q", "-x", *selection]
            ran = subprocess.run(command, cwd=self.house, capture_output=True, text=True)
            last = ran.stdout.strip().splitlines()[-1:] or [ran.stderr.strip()[-200:]]
            told = f"{what}: {last[0].strip('= ')}"
            (self.failed if ran.returncode else self.done).append(told)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", help="what to carry the patches to, for example 0.5.16")
    parser.add_argument("--from", dest="source", metavar="R", help="take the hunks of this release")
    parser.add_argument("--also", action="append", default=[], metavar="R", help="a twin, if it is")
    parser.add_argument("--tree", type=Path, metavar="PATH", help="a folder that holds sglang/")
    parser.add_argument("--no-tests", action="store_true", help="place only")
    args = parser.parse_args()
    started = time.monotonic()
    try:
        patches = series.load(HOUSE)
        source = patches.release(args.source) if args.source else nearest(patches, args.release)
    except (Refused, WrongUsage) as refusal:
        parser.error(str(refusal))
    if not args.tree:
        pin(HOUSE / "patches" / args.release, args.release, args.also)
    tree = args.tree or export.pristine_tree(args.release)
    if not (tree / "sglang" / "srt").is_dir():
        parser.error(f"{tree} holds no sglang/srt")
    port = Port(args.release, tree, source)
    port.carry()
    port.describe()
    port.prove()
    if not (args.no_tests or args.tree or port.failed):
        port.test()
    print(port.page(time.monotonic() - started))
    return 1 if port.decide or port.failed else 0


def pin(folder: Path, release: str, also: list[str]) -> None:
    """Begin the series of a release: which wheels it is for, each by the sha256 that is served."""
    path = folder / "release.json"
    said = json.loads(path.read_text()) if path.exists() else {"release": release}
    wheels = said.setdefault("wheels", {})
    new = [name for name in (release, *also) if name not in wheels]
    for name in new:
        wheels[name] = fetch.digest(name, HOUSE / "build")
        print(f"pinned: sglang {name} is {wheels[name]}; compare it with what the index shows")
    said |= {"also": sorted({*said.get("also", []), *also})} if also else {}
    if new:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said, indent=2) + "\n")
        (folder / "series").touch()
        manifest.write(HOUSE)


def nearest(patches: series.PatchSet, release: str) -> series.Release:
    """The newest release with a series that is older than `release`; the oldest, if none is."""
    known = [each for each in patches.releases.values() if each.name != release]
    older = [each for each in known if version(each.name) < version(release)]
    return older[-1] if older else known[0]


if __name__ == "__main__":
    sys.exit(main())
