"""One function per command: what it does with a request, and what comes of it."""

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from patchset import report, transition
from patchset import state as states
from patchset.errors import Refused
from patchset.journal import Journal
from patchset.series import PatchSet, Release
from patchset.state import NotMovable, State
from patchset.tree import Tree


class Request(NamedTuple):
    args: argparse.Namespace
    slugs: Sequence[str]  # those named; none means all
    patchset: PatchSet
    tree: Tree | None  # None for the commands that need none
    home: Path

    def found(self) -> Tree:
        assert self.tree
        return self.tree

    def again(self, *words: str) -> str:
        """The command line of another command for the same tree."""
        which = []
        if self.args.tree:
            which = ["--tree", self.args.tree]
        elif self.args.fetch:
            which = ["--fetch", self.args.fetch]
        return report.command(*words, *which)


class Outcome(NamedTuple):
    good: bool
    text: str  # for a person
    shown: dict[str, Any]  # for --json
    is_diff: bool = False  # for git, and so as it is


Command = Callable[[Request], Outcome]


def apply(request: Request) -> Outcome:
    def wanted(state: State) -> frozenset[str]:
        release = _release(state)
        return state.on | release.required(_present(release, request))

    return _move(request, wanted)


def revert(request: Request) -> Outcome:
    def wanted(state: State) -> frozenset[str]:
        release = _release(state)
        off = set(_present(release, request))
        for slug in sorted(state.on - off):
            needed = sorted(off & release.required([slug]))
            if needed:
                both = request.again("revert", *request.slugs, slug)
                raise Refused(f"{slug} is on and requires {needed[0]}\nturn both off: {both}")
        return state.on - off

    return _move(request, wanted)


def status(request: Request) -> Outcome:
    state = states.read(request.found(), request.patchset)
    if not state.release:
        text = report.not_movable(state, request.home)
        return Outcome(True, text, report.as_json(state, text))
    summary = _unfinished(request) or _standing(request, state)
    parts = [report.headline(state), report.status_table(state), report.wrong_files(state), summary]
    text = "\n\n".join(part for part in parts if part)
    return Outcome(True, text, report.as_json(state, summary))


def verify(request: Request) -> Outcome:
    state = states.read(request.found(), request.patchset)
    unfinished = _unfinished(request)
    if not unfinished and state.status in (states.DRIFTED, states.UNKNOWN_RELEASE):
        raise NotMovable(state)
    off = [slug for slug in state.nearest.patches if slug not in state.on]
    if not (off or state.wrong or unfinished):
        text = f"{report.headline(state)}\nevery slug is on and every byte is right"
        return Outcome(True, text, report.as_json(state, text))
    what = [f"off: {', '.join(off)}"] if off else []
    what += [report.wrong_files(state)] if state.wrong else []
    what += [unfinished or f"to turn all on: {request.again('apply')}"]
    text = "\n".join([report.headline(state), *what])
    return Outcome(False, text, report.as_json(state, text))


def list(request: Request) -> Outcome:
    text = report.listing(request.patchset)
    shown = report.as_json(None, text, releases=report.listing_json(request.patchset))
    return Outcome(True, text, shown)


def export(request: Request) -> Outcome:
    from patchset.export import export as exported

    release = request.patchset.release(request.args.release)
    on = release.required(_present(release, request))
    text = exported(request.patchset, release, on).decode()
    message = f"{len(on)} slugs of {release.name} as one diff"
    shown = report.as_json(None, message, release=release.name, digest=release.digest, diff=text)
    return Outcome(True, text, shown, is_diff=True)


def _move(request: Request, wanted: Callable[[State], Collection[str]]) -> Outcome:
    args = request.args
    move = transition.move(
        request.found(),
        request.patchset,
        wanted,
        purpose=" ".join([args.command.__name__, *request.slugs]),
        dry_run=args.dry_run,
        tell=lambda line: print(f"apply.py: {line}", file=sys.stderr, flush=True),
    )
    lines = [move.recovered] if move.recovered else []
    if not move.changed:
        lines += ["nothing to do: the tree is as asked"]
    elif args.dry_run:
        lines += [f"{len(move.changed)} files would change; nothing was written"]
        lines += [f"  {path}" for path in move.changed]
    else:
        lines += [f"{len(move.changed)} files changed, every byte proven"]
        lines += [f"check at any time: {request.again('status')}"]
    message = "\n".join(lines)
    text = f"{report.headline(move.after)}\n\n{report.move_table(move, args.dry_run)}\n\n{message}"
    return Outcome(True, text, report.as_json(move.after, message, changed=move.changed))


def _release(state: State) -> Release:
    if not state.release:
        raise NotMovable(state)
    return state.release


def _present(release: Release, request: Request) -> Sequence[str]:
    """The named slugs that this release has a patch for; it may have the others of itself."""
    slugs = request.slugs or [*release.patches]
    for slug in slugs:
        if slug not in release.patches and slug not in release.upstream:
            have = ", ".join(release.patches)
            raise Refused(f"{slug} has no patch for sglang {release.name}; it has: {have}")
    return [slug for slug in slugs if slug in release.patches]


def _unfinished(request: Request) -> str | None:
    journal = Journal(request.found())
    purpose = journal.interrupted()
    if not purpose:
        return None
    if journal.at_work():
        return f"`{purpose}` is at work on this tree now"
    return f"`{purpose}` was interrupted here; the next apply or revert brings it to an end"


def _standing(request: Request, state: State) -> str:
    """What the status means for the user, and the command that follows."""
    if state.status == states.DRIFTED:
        return f"apply and revert refuse such a tree; {report.remedy(state, request.home)}"
    if state.status != states.PARTIAL:
        return ""
    older = any(file.status == states.OUTDATED for file in state.files)
    why = "an older revision of this set patched it" if older else "it is between two states"
    return (
        f"{why}; to turn all on: {request.again('apply')}\n"
        f"or to get the release back: {request.again('revert')}"
    )
