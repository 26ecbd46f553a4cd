"""Moving a tree to a state: one operation, whether it is called apply, revert or upgrade."""

import os
from collections.abc import Callable, Collection
from typing import NamedTuple

from patchset import state as states
from patchset.diff import blob_id, patched, split, unpatched
from patchset.errors import Refused
from patchset.journal import Change, Journal
from patchset.record import repaired
from patchset.series import OVERLAY, PatchSet
from patchset.state import NotMovable, State
from patchset.tree import Tree


class Move(NamedTuple):
    before: State
    after: State  # on a dry run, what the tree still is
    target: frozenset[str]
    changed: list[str]
    recovered: str | None  # what became of an earlier run that did not end


def move(
    tree: Tree,
    patchset: PatchSet,
    wanted: Callable[[State], Collection[str]],
    *,
    purpose: str,
    dry_run: bool,
    tell: Callable[[str], None],
) -> Move:
    """Bring the tree to the state in which the slugs that `wanted` names are on."""

    def survey() -> tuple[State, frozenset[str], list[Change]]:
        state = states.read(tree, patchset)
        target = frozenset(wanted(state))
        return state, target, plan(state, target)

    journal, recovered = Journal(tree), None
    if journal.exists() and not dry_run:
        with journal.held(tell):
            recovered = journal.recover()
    # Without the lock first: what is refused, or done already, writes nothing at all.
    stamp = journal.stamp()
    try:
        before, target, changes = survey()
        if dry_run or not changes:
            return Move(before, before, target, [change.path for change in changes], recovered)
    except Refused:
        if dry_run or journal.stamp() == stamp:
            raise  # else it may have been read while another writer was at work
    with journal.held(tell):
        recovered = journal.recover() or recovered
        before, target, changes = survey()
        if changes:
            journal.carry_out(changes, purpose)
        after = states.read(tree, patchset)
    if after.on != target or after.wrong:
        raise NotMovable(after)
    return Move(before, after, target, [change.path for change in changes], recovered)


def plan(state: State, target: Collection[str]) -> list[Change]:
    """What brings the tree to `target`: proven, and in an order that imports at every point."""
    if state.status in (states.DRIFTED, states.UNKNOWN_RELEASE):
        raise NotMovable(state)
    if frozenset(target) == state.on and not state.wrong:
        return []
    image = states.image(state.patchset, state.nearest, state.touched, target)
    _prove(state, image, target)
    tree = state.tree
    laid = {path for path in image if path.startswith(OVERLAY + "/")}
    gone = set(tree.files(OVERLAY)) - laid
    records = {path: tree.read(path) or b"" for path in tree.records()}
    image |= {path: repaired(data, state.touched, image) for path, data in records.items()}
    # Modules before the hooks that call them, hooks before the modules that go.
    order = [*sorted(laid), *sorted(state.touched), *sorted(gone), *records]
    pairs = [Change(path, tree.read(path), image.get(path)) for path in order]
    changes = [change for change in pairs if change.before != change.after]
    for change in changes:
        _refuse_links(tree, change.path)
    return changes


def _prove(state: State, image: dict[str, bytes], target: Collection[str]) -> None:
    """Each patch makes what its index line says, and all together go back to the pristine file."""
    assert state.release
    for path, file in state.touched.items():
        assert file.pristine is not None
        diffs = state.release.diffs(path, target)
        whole = unpatched(split(image[path]), diffs) == file.pristine
        if not whole or any(blob_id(patched(file.pristine, [d])) != d.new_id for d in diffs):
            raise Refused(
                f"the patches of release {state.release.name} do not make what they say of {path}\n"
                "see what differs, in the checkout of this set: git diff -- patches"
            )


def _refuse_links(tree: Tree, path: str) -> None:
    """A link leads to a file that others share, such as a package manager's cache."""
    file = tree.file(path)
    real = os.path.realpath(file)
    if real != str(file):
        raise Refused(
            f"{file} is a symbolic link to {real}, which other trees may share\n"
            f"make it a file of its own: cp --remove-destination {real} {file}"
        )
