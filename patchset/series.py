"""The patch set as it lies in this checkout: releases, their patches, and the overlay."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from patchset import folder
from patchset.diff import DiffError, FileDiff, blob_id, neighbours, parse
from patchset.errors import Refused, WrongUsage
from patchset.functions import Entered, entered
from patchset.published import Published, version
from patchset.published import load as load_published

# Where the overlay lands, and the only folder of a tree in which the tool creates files.
OVERLAY = "sglang/srt/rocm_patches"
# A patch beside the series that no user names: it is on whenever any slug is.
SELF_REPORT = "self-report"


class Patch(NamedTuple):
    slug: str
    trailers: Mapping[str, str]
    diffs: Mapping[str, FileDiff]  # by path

    @property
    def requires(self) -> list[str]:
        return [slug.strip() for slug in self.trailers.get("Requires", "").split(",") if slug]


class Release(NamedTuple):
    name: str
    also: tuple[str, ...]  # other releases whose touched files are the same bytes
    upstream: Mapping[str, str]  # slugs that this release has of itself, and since what
    info: Mapping[str, Any]  # release.json
    patches: Mapping[str, Patch]  # by slug, in the order of the series
    self_report: Patch | None
    digest: str  # of the series and the overlay together
    entered: Mapping[str, Mapping[str, Entered]]  # functions.json, by slug and path
    near: bool = False  # made for a tree that is not this release, but near it
    unfit: Mapping[str, str] = MappingProxyType({})  # there, why a patch is not among `patches`

    @property
    def every(self) -> list[Patch]:
        """The series and the self-report."""
        return [*self.patches.values(), *([self.self_report] if self.self_report else [])]

    def touching(self, path: str) -> list[Patch]:
        return [patch for patch in self.every if path in patch.diffs]

    def pristine_ids(self) -> dict[str, str]:
        return {path: diff.old_id for patch in self.every for path, diff in patch.diffs.items()}

    def diffs(self, path: str, on: Iterable[str]) -> list[FileDiff]:
        """The diffs of `path` while the slugs `on` are on, the self-report's among them."""
        names = {*on, SELF_REPORT} if on else set()
        return [p.diffs[path] for p in self.touching(path) if p.slug in names]

    def required(self, slugs: Iterable[str]) -> set[str]:
        """`slugs` and all that they require, less what the release has of itself."""
        closed, todo = set[str](), list(slugs)
        while todo:
            slug = todo.pop()
            if slug not in closed and slug not in self.upstream:
                closed.add(slug)
                todo += self.patches[slug].requires
        return closed


class PatchSet(NamedTuple):
    releases: Mapping[str, Release]
    overlay: Mapping[str, bytes]  # by path in the tree
    published: Published = Published((), {}, {})

    @property
    def slugs(self) -> list[str]:
        """Every slug of every release, in the order of the series."""
        return list(
            dict.fromkeys(s for r in self.releases.values() for s in (*r.patches, *r.upstream))
        )

    @property
    def covers(self) -> dict[str, str]:
        """Every covered release, and the series that is for it."""
        return {name: r.name for r in self.releases.values() for name in (r.name, *r.also)}

    def release(self, name: str) -> Release:
        if name not in self.covers:
            raise WrongUsage(f"no series covers release {name}; covered are: {self.covered()}")
        return self.releases[self.covers[name]]

    def covered(self) -> str:
        return ", ".join(sorted(self.covers, key=version)) or "none"

    def laid(self, on: Iterable[str]) -> dict[str, bytes]:
        """The overlay files of a tree in which the slugs `on` are on."""
        if not on:
            return {}
        owners = {None, *on}
        return {path: data for path, data in self.overlay.items() if self._owner(path) in owners}

    def _owner(self, path: str) -> str | None:
        """The slug whose module `path` is, None for what all slugs share."""
        name = path.removeprefix(OVERLAY + "/")
        for slug in sorted(self.slugs, key=len, reverse=True):
            module = slug.replace("-", "_")
            if name == f"{module}.py" or name.startswith(f"{module}_"):
                return slug
        return None


# Loading -------------------------------------------------------------------------------------


def load(home: Path) -> PatchSet:
    """The patch set of the checkout at `home`; a damaged one is refused as a whole."""
    overlay = _overlay(home / "overlay")
    folders = [path.parent for path in (home / "patches").glob("*/release.json")]
    folders.sort(key=lambda found: version(found.name))
    if not folders:
        raise Refused(f"{home / 'patches'} holds no release; get a complete checkout of this set")
    try:
        releases = [_release(found, overlay) for found in folders]
        published = load_published(home / "patches")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise Refused(
            f"the patch set itself is damaged: {fault}\n"
            "see what differs, in its checkout: git diff -- patches overlay\n"
            "if nobody means to keep that: git checkout -- patches overlay"
        ) from fault
    return PatchSet({release.name: release for release in releases}, overlay, published)


def _overlay(root: Path) -> dict[str, bytes]:
    found = {
        (place.path / name).relative_to(root).as_posix(): place.read(name)
        for place, name in folder.walk(root)
        if "__pycache__" not in place.path.parts
    }
    for path in found:
        if not path.startswith(OVERLAY + "/"):
            raise Refused(f"overlay/{path} lies outside overlay/{OVERLAY}; move it there")
    return found


def _release(home: Path, overlay: Mapping[str, bytes]) -> Release:
    sources = [home / "release.json", home / "series", *sorted(home.glob("*.patch"))]
    content = {source.name: folder.read(source) for source in sources}
    info = json.loads(content["release.json"])
    if info["release"] != home.name:
        raise ValueError(f"{home / 'release.json'} says release {info['release']}")
    series = content["series"].decode().splitlines()
    slugs = [slug for slug in (line.partition("#")[0].strip() for line in series) if slug]
    named = {f"{slug}.patch" for slug in slugs}
    there = {name for name in content if name.endswith(".patch")} - {f"{SELF_REPORT}.patch"}
    for name in sorted(named ^ there):
        fault = "does not exist" if name in named else "is not named there"
        raise ValueError(f"{home / 'series'}: {name} {fault}")
    patches = {slug: _patch(slug, home, content[f"{slug}.patch"]) for slug in slugs}
    own = content.get(f"{SELF_REPORT}.patch")
    functions = home / "functions.json"
    release = Release(
        name=info["release"],
        also=tuple(info.get("also", ())),
        upstream=info.get("upstream", {}),
        info=info,
        patches=patches,
        self_report=_patch(SELF_REPORT, home, own) if own else None,
        entered=entered(folder.read(functions).decode()) if functions.is_file() else {},
        digest=_digest({**{f"patches/{home.name}/{n}": content[n] for n in content}, **overlay}),
    )
    _check(home, release)
    return release


def _patch(slug: str, home: Path, text: bytes) -> Patch:
    try:
        diffs = parse(text)
    except DiffError as fault:
        raise ValueError(f"{home / slug}.patch: {fault}") from fault
    return Patch(slug, trailers(text.decode()), {diff.path: diff for diff in diffs})


def trailers(text: str) -> dict[str, str]:
    """The `Key: value` lines on top of a patch; an indented line continues the one before."""
    found: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("diff --git "):
            break
        if line[0].isspace() and key:
            found[key] = f"{found[key]} {line.strip()}".strip()
        elif ":" in line:
            key, _, value = line.partition(":")
            found[key] = value.strip()
    return found


def _check(home: Path, release: Release) -> None:
    """What the tool relies on: commuting diffs of one pristine file, and known requirements."""
    known = {*release.patches, *release.upstream}
    for patch in release.patches.values():
        for slug in patch.requires:
            if slug not in known:
                raise ValueError(f"{home / patch.slug}.patch requires {slug}, not in the series")
    for path in release.pristine_ids():
        for one, other in combinations(release.touching(path), 2):
            pair = f"{home}: {one.slug} and {other.slug}"
            if one.diffs[path].old_id != other.diffs[path].old_id:
                raise ValueError(f"{pair} disagree about the pristine {path}")
            line = neighbours(one.diffs[path], other.diffs[path])
            if line:
                raise ValueError(f"{pair} touch or neighbour each other at {path}:{line}")


def _digest(files: Mapping[str, bytes]) -> str:
    rows = sorted(f"{path}\0{blob_id(data)}\n" for path, data in files.items())
    return hashlib.sha256("".join(rows).encode()).hexdigest()
