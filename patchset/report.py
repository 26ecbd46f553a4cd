"""What the user reads: tables, what is wrong with which file, the next command, the JSON object."""

import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from patchset import state as states
from patchset.series import OVERLAY, PatchSet, Release
from patchset.state import FileState, State, belongs_to
from patchset.transition import Move

WIDTH = 100
_GREEN, _RED, _PLAIN = "\033[32m", "\033[31m", "\033[0m"
_GOOD = {"on", "upstream", states.PRISTINE, states.PATCHED}
_BAD = {states.PARTIAL, *states.FOREIGN}
# A cell of a table, or what a line begins with.
_CELL_OR_LEAD = re.compile(
    rf"(?<=  )(?:on|upstream)(?=  |$)|^ *(?:{'|'.join(sorted(_GOOD | _BAD))})(?=: )", re.MULTILINE
)

_MEANING = {
    states.ABSENT: "it should be there",
    states.CRLF: "the release's text, but with CRLF line ends",
    states.DRIFTED: "no state of any covered release has it so",
    states.KNOWN: "right for another state of the tree",
    states.OUTDATED: "another revision of this set made it",
    states.STRAY: "nothing this set lays; the folder is its own",
    states.STALE: "its rows do not match the files",
}


def as_json(state: State | None, message: str, **rest: Any) -> dict[str, Any]:
    release = state.release if state else None
    shown: dict[str, Any] = {
        "release": release.name if release else state.published if state else None,
        "tree": str(state.tree.package) if state else None,
        "state": slug_states(state, state.on) if state else {},
        "status": state.status if state else None,
        "digest": release.digest if release else None,
        "files": [file._asdict() for file in state.files] if state else [],
        "changed": [],
        "message": message,
    }
    return shown | rest


def slug_states(state: State, on: Collection[str]) -> dict[str, str]:
    release, known = state.release, state.patchset.published
    patches = release.patches if release else ()
    upstream = [*release.upstream] if release else []
    if state.published:
        upstream = known.upstream(state.published, "whole")
    return {
        slug: "upstream"
        if slug in upstream
        else "unavailable"
        if slug not in patches
        else "on"
        if slug in on
        else "off"
        for slug in state.patchset.slugs
    }


# A tree ---------------------------------------------------------------------------------------


def headline(state: State) -> str:
    release = state.release
    if not release:
        called = state.tree.version()
        itself = f", which calls itself {called}," if called else ""
        return f"{state.tree.package}{itself} is no published release that this set knows"
    same = f" (same files: {', '.join(release.also)})" if release.also else ""
    called = f"near sglang {release.name}" if release.near else f"sglang {release.name}{same}"
    return (
        f"{called} in {state.tree.package}\n"
        f"{state.status}: {len(state.on)} of {len(release.patches)} slugs on, "
        f"patch set {release.digest[:12]}"
    )


def status_table(state: State) -> str:
    now = slug_states(state, state.on)
    rows = [(slug, now[slug], _subject(state, slug)) for slug in now]
    return _table(("slug", "state", "what it does"), rows)


def move_table(move: Move, dry_run: bool) -> str:
    was, now = (slug_states(move.before, on) for on in (move.before.on, move.target))
    rows = [(slug, was[slug], now[slug], _subject(move.before, slug)) for slug in was]
    return _table(
        ("slug", "is" if dry_run else "was", "then" if dry_run else "is", "what it does"), rows
    )


def _subject(state: State, slug: str) -> str:
    """What the slug does, in this release's words or the latest ones."""
    releases = [*state.patchset.releases.values()]
    own = [state.release] if state.release else []
    patches = [r.patches[slug] for r in (*own, *reversed(releases)) if slug in r.patches]
    return patches[0].trailers.get("Subject", "") if patches else ""


def wrong_files(state: State) -> str:
    return "\n".join(
        f"  {file.path}\n"
        f"      {file.status}: found {_short(file.found)}, "
        f"expected {_short(file.expected)}: {_why(state, file)}"
        for file in state.wrong
    )


def _short(blob: str | None) -> str:
    return blob[:12] if blob else "no file"


def _why(state: State, file: FileState) -> str:
    if file.status != states.DRIFTED:
        return _MEANING[file.status]
    data = state.tree.read(file.path)
    if data is None:
        return "it should be there"
    owners = belongs_to(state.patchset, file.path, data)
    if owners:
        return f"it is this file of release {', '.join(owners)}"
    return _MEANING[file.status]


# Refusals -------------------------------------------------------------------------------------


def not_movable(state: State, home: Path) -> str:
    if state.published:
        what = f"{state.tree.package} is sglang {state.published}"
        told = uncovered(what, state.published, state.patchset)
        return f"{told}\n{nearness(state)}" if state.release else told
    if state.release and state.release.near and state.status != states.DRIFTED:
        release, differing = state.release, state.differing
        lines = [
            f"{state.tree.package} is not sglang {release.name}, but near it: of what its patches "
            f"touch, {len(differing)} file{'s differ' if len(differing) > 1 else ' differs'}:"
        ]
        for file in differing:
            found, expected = _short(file.found), _short(file.expected)
            lines += [f"  {file.path}: found {found}, expected {expected}"]
        lines += [nearness(state)]
        return "\n".join(lines)
    if not state.release:
        ids = state.nearest.pristine_ids()
        differ = sum(file.path in ids for file in state.wrong)
        nearest = (
            f"the nearest is {state.nearest.name}: {differ} of the {len(ids)} files that its "
            "patches touch differ"
            if differ < len(ids)
            else "none of the files that a patch touches is the same, and no slug's functions are"
        )
        return (
            f"{headline(state)}; covered are: {state.patchset.covered()}\n"
            f"{nearest}; install a covered release: {command('list')}"
        )
    count = sum(file.status in states.FOREIGN for file in state.files)
    return (
        f"{headline(state)}\n{count} file{'s are' if count > 1 else ' is'} not as any state of "
        f"this release has {'them' if count > 1 else 'it'}, so nothing was written:\n"
        f"{wrong_files(state)}\n{remedy(state, home)}"
    )


def nearness(state: State) -> str:
    """Which slugs fit a tree that is near a release, why the others do not, and the command."""
    release = state.release
    if not (release and release.near):
        return ""
    lines = [f"{slug} does not fit: {why}" for slug, why in release.unfit.items()]
    fit = f"these fit by their functions, which are those of {release.name}: "
    lines += [fit + ", ".join(release.patches)]
    if {*release.patches} - state.on:
        again = command("apply", "--near", "--tree", str(state.tree.package))
        lines += [f"turn them on: {again}"]
    return "\n".join(lines)


def uncovered(what: str, release: str, patchset: PatchSet) -> str:
    """Two lines about a published release for which there is no series."""
    known = patchset.published
    if release not in known.releases:
        return (
            f"{what}, which no series covers; covered are: {patchset.covered()}\n"
            f"name one of these, or a tree with --tree PATH: {command('list')}"
        )
    whole, part = (", ".join(known.upstream(release, how)) for how in ("whole", "part"))
    has = [f"{whole} upstream" if whole else "none of the slugs whole upstream"]
    has += [f"{part} in part" if part else ""]
    return (
        f"{what}, which no series covers; covered are: {patchset.covered()}\n"
        f"it has {', and '.join(filter(None, has))}; the nearest series is "
        f"{known.nearest(release, patchset.covers)}: {command('list')}"
    )


def remedy(state: State, home: Path) -> str:
    """How to look at what stands in the way, and the commands that give it up, in their order."""
    tree, release = state.tree, state.release
    assert release
    drifted = [file for file in state.files if file.status in states.FOREIGN]
    own = [str(tree.file(f.path)) for f in drifted if f.path.startswith(OVERLAY + "/")]
    theirs = [str(tree.file(f.path)) for f in drifted if not f.path.startswith(OVERLAY + "/")]
    git = f"git -C {shlex.quote(str(tree.root))}"
    if tree.root.parent == home / "build":
        return f"to fetch the release anew: rm -r {shlex.quote(str(tree.root))}"
    if theirs and all(file.status == states.CRLF for file in drifted):
        again = f"{git} -c core.autocrlf=false checkout -- {shlex.join(theirs)}"
        return f"to get the release's line ends: {again}"
    lines = ["copy what you want to keep, then give up what differs:"]
    lines += [f"rm {shlex.join(own)}"] if own else []
    if theirs and tree.records():
        name = tree.records()[0].partition("-")[0].replace("_", "-")
        version = tree.version() if tree.version() in release.also else release.name
        pip = f"{python()} -m pip install --force-reinstall --no-deps"
        lines += [f"{pip} {name}=={version}"]
    elif theirs:
        lines[:0] = [f"to see what differs: {git} diff v{release.name} -- {shlex.join(theirs)}"]
        lines += [f"{git} checkout v{release.name} -- {shlex.join(theirs)}"]
    return "\n".join(lines)


def command(*words: str) -> str:
    return shlex.join([python(), sys.argv[0], *words])


def python() -> str:
    """The Python that is running, by its short name where that is the one a shell finds."""
    found = shutil.which("python3")
    return "python3" if found and _folder(found) == _folder(sys.executable) else sys.executable


def _folder(executable: str) -> str:
    return os.path.realpath(os.path.dirname(executable))


# The patch set --------------------------------------------------------------------------------


def listing(patchset: PatchSet) -> str:
    return "\n\n".join(_release(release) for release in patchset.releases.values())


def listing_json(patchset: PatchSet) -> list[dict[str, Any]]:
    return [
        {
            **release.info,
            "digest": release.digest,
            "slugs": {slug: dict(patch.trailers) for slug, patch in release.patches.items()},
        }
        for release in patchset.releases.values()
    ]


def _release(release: Release) -> str:
    same = f" (same files: {', '.join(release.also)})" if release.also else ""
    needs = ", ".join(f"{k} {v}" for k, v in release.info.items() if k not in _STRUCTURE)
    head = f"sglang {release.name}{same}, patch set {release.digest[:12]}"
    lines = [head, *textwrap.wrap(f"made for {needs}", WIDTH)] if needs else [head]
    for slug, patch in release.patches.items():
        said = patch.trailers
        lines += ["", f"  {slug}"]
        facts = {
            "does": said.get("Subject", ""),
            "upstream": f"{said.get('Upstream-PR', '')}, {said.get('Upstream-Status', '')}",
            "needs": said.get("Hardware", ""),
            "requires": said.get("Requires", ""),
            "numerics": said.get("Numerics", ""),
            "off with": f"{said.get('Switch', '')}=0",
        }
        lines += _facts(facts)
    for slug, by in release.upstream.items():
        lines += ["", f"  {slug}", *_facts({"upstream": f"has it whole: {by}; nothing to apply"})]
    return "\n".join(lines)


def _facts(facts: Mapping[str, str]) -> list[str]:
    lines = []
    for name, fact in facts.items():
        wrapped = textwrap.wrap(fact, WIDTH - 13, break_on_hyphens=False)
        if fact:
            lines += [f"    {a:<9}{b}" for a, b in zip_longest([name], wrapped, fillvalue="")]
    return lines


_STRUCTURE = {"release", "also", "upstream", "wheels"}


# Layout ---------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they need; the last takes the rest and wraps."""
    every = [head, *rows]
    widths = [max(len(row[n]) for row in every) + 2 for n in range(len(head) - 1)]
    lead = sum(widths) + 2
    lines = []
    for row in every:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        rest = textwrap.wrap(row[-1], WIDTH - lead, break_on_hyphens=False) or [""]
        lines.append(f"  {''.join(cells)}{rest[0]}".rstrip())
        lines += [" " * lead + more for more in rest[1:]]
    return "\n".join(lines)


def painted(text: str) -> str:
    """`text` with its good words in green and its bad ones in red, for a terminal."""

    def paint(word: re.Match[str]) -> str:
        return f"{_GREEN if word[0].strip() in _GOOD else _RED}{word[0]}{_PLAIN}"

    return _CELL_OR_LEAD.sub(paint, text)
