"""One function per command: what it does with a request, and what comes of it."""

import contextlib
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from patchset import VERSION, manifest, report, transition
from patchset import state as states
from patchset.errors import Refused
from patchset.export import export
from patchset.journal import Journal
from patchset.series import PatchSet, Release
from patchset.state import NotMovable, State
from patchset.tree import Tree


class Request(NamedTuple):
    command: str
    slugs: Sequence[str]  # those named; none means all
    patchset: PatchSet
    home: Path
    which: Sequence[str]  # the words that name the tree, for the commands that are suggested
    dry_run: bool
    near: bool  # move a tree that is near a release too
    release: str  # of an export

    def again(self, *words: str) -> str:
        """The command line of another command for the same tree."""
        return report.command(*words, *self.which)

    def move_again(self, state: State, *words: str) -> str:
        """The same of an apply or a revert."""
        return self.again(*words, *(["--near"] if state.nearest.near else []))


class Outcome(NamedTuple):
    good: bool
    text: str  # for a person
    shown: dict[str, Any]  # for --json
    is_diff: bool = False  # for git, and so as it is


def turn_on(request: Request, tree: Tree) -> Outcome:
    def wanted(state: State) -> frozenset[str]:
        release = _movable(state, request.near)
        return state.on | release.required(_present(release, request))

    return _move(request, tree, wanted)


def turn_off(request: Request, tree: Tree) -> Outcome:
    def wanted(state: State) -> frozenset[str]:
        # What an earlier --near did, a revert undoes without being told again.
        release = _movable(state, request.near or state.laid_near)
        off = set(_present(release, request))
        for slug in sorted(state.on - off):
            needed = sorted(off & release.required([slug]))
            if needed:
                both = request.move_again(state, "revert", *request.slugs, slug)
                raise Refused(f"{slug} is on and requires {needed[0]}\nturn both off: {both}")
        return state.on - off

    return _move(request, tree, wanted)


def status(request: Request, tree: Tree) -> Outcome:
    state = states.read(tree, request.patchset)
    if not state.release:
        text = report.not_movable(state, request.home)
        return Outcome(True, text, report.as_json(state, text))
    standing = Journal(tree).standing() or _standing(request, state)
    summary = "\n".join(filter(None, [report.nearness(state), standing]))
    parts = [report.headline(state), report.status_table(state), report.wrong_files(state), summary]
    text = "\n\n".join(part for part in parts if part)
    return Outcome(True, text, report.as_json(state, summary))


def verify(request: Request, tree: Tree) -> Outcome:
    """Good where exactly the named slugs, and what they require, are on: all, if none is named."""
    state = states.read(tree, request.patchset)
    unfinished = Journal(tree).standing()
    if not unfinished and state.status in (states.DRIFTED, states.UNKNOWN_RELEASE):
        raise NotMovable(state)
    asked = state.nearest.required(_present(state.nearest, request))
    off = [slug for slug in state.nearest.patches if slug in asked - state.on]
    beyond = [slug for slug in state.nearest.patches if slug in state.on - asked]
    if not (off or beyond or state.wrong or unfinished):
        on = f"on: {', '.join(request.slugs)};" if request.slugs else "every slug is on and"
        text = f"{report.headline(state)}\n{on} every byte is right"
        return Outcome(True, text, report.as_json(state, text))
    what = [f"off: {', '.join(off)}"] if off else []
    what += [f"on, but not asked for: {', '.join(beyond)}"] if beyond else []
    what += [report.wrong_files(state)] if state.wrong else []
    if unfinished:
        what += [unfinished]
    elif off or not beyond:
        again = request.move_again(state, "apply", *request.slugs)
        what += [f"to turn on what was asked for: {again}"]
    if beyond and not unfinished:
        what += [f"to turn off the rest: {request.move_again(state, 'revert', *beyond)}"]
    text = "\n".join([report.headline(state), *what])
    return Outcome(False, text, report.as_json(state, text))


def show_releases(request: Request) -> Outcome:
    digest = manifest.digest(request.home)
    text = f"patch set {VERSION}, digest {digest}\n\n{report.listing(request.patchset)}"
    releases = report.listing_json(request.patchset)
    shown = report.as_json(None, text, version=VERSION, digest=digest, releases=releases)
    return Outcome(True, text, shown)


def show_diff(request: Request) -> Outcome:
    release = request.patchset.release(request.release)
    on = release.required(_present(release, request))
    text = export(request.patchset, release, on).decode()
    message = f"{len(on)} slugs of {release.name} as one diff"
    shown = report.as_json(None, message, release=release.name, digest=release.digest, diff=text)
    return Outcome(True, text, shown, is_diff=True)


def _move(request: Request, tree: Tree, wanted: Callable[[State], Collection[str]]) -> Outcome:
    move = transition.move(
        tree,
        request.patchset,
        wanted,
        purpose=" ".join([request.command, *request.slugs]),
        dry_run=request.dry_run,
        tell=_tell,
    )
    lines = [move.recovered] if move.recovered else []
    if not move.changed:
        lines += ["nothing to do: the tree is as asked"]
    elif request.dry_run:
        lines += [f"{len(move.changed)} files would change; nothing was written"]
        lines += [f"  {path}" for path in move.changed]
    else:
        lines += [f"{len(move.changed)} files changed, every byte proven"]
        lines += [f"check at any time: {request.again('status')}"]
    message = "\n".join([*lines, *move.notes])
    table = report.move_table(move, request.dry_run)
    text = f"{report.headline(move.after)}\n\n{table}\n\n{message}"
    return Outcome(True, text, report.as_json(move.after, message, changed=move.changed))


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # whether anybody reads it does not matter to the tree
        print(f"apply.py: {line}", file=sys.stderr, flush=True)


def _movable(state: State, near: bool) -> Release:
    if not state.release or (state.release.near and not near):
        raise NotMovable(state)
    return state.release


def _present(release: Release, request: Request) -> Sequence[str]:
    """The named slugs that this release has a patch for; it may have the others of itself."""
    slugs = request.slugs or [*release.patches]
    for slug in slugs:
        if slug in release.unfit:
            raise Refused(f"{slug} does not fit this tree: {release.unfit[slug]}")
        if slug not in release.patches and slug not in release.upstream:
            have = ", ".join(release.patches)
            raise Refused(f"{slug} has no patch for sglang {release.name}; it has: {have}")
    return [slug for slug in slugs if slug in release.patches]


def _standing(request: Request, state: State) -> str:
    """What the status means for the user, and the command that follows."""
    if state.status == states.DRIFTED:
        return f"apply and revert refuse such a tree\n{report.remedy(state, request.home)}"
    if state.status != states.PARTIAL:
        return ""
    outdated = any(file.status == states.OUTDATED for file in state.files)
    why = "another revision of this set patched it" if outdated else "it is between two states"
    return (
        f"{why}; to turn all on: {request.move_again(state, 'apply')}\n"
        f"or to get the release back: {request.move_again(state, 'revert')}"
    )
