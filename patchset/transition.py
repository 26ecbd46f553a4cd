"""Moving a tree to a state: one operation, whether it is called apply, revert or upgrade."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from patchset import state as states
from patchset.diff import blob_id, patched, split, unpatched
from patchset.errors import Refused
from patchset.journal import Journal
from patchset.run import Change
from patchset.series import OVERLAY, PatchSet
from patchset.state import NotMovable, State
from patchset.tree import Tree


class Move(NamedTuple):
    before: State
    after: State  # on a dry run, what the tree still is
    target: frozenset[str]
    changed: list[str]
    recovered: str | None  # what became of an earlier run that did not end
    notes: Sequence[str] = ()  # what else the user is to know


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
        with journal.held(tell) as run:
            recovered = run.recover()
    # Without the lock first: what is refused, or done already, writes nothing at all.
    stamp = journal.stamp()
    try:
        before, target, changes = survey()
        if dry_run or not changes:
            return Move(before, before, target, [change.path for change in changes], recovered)
    except Refused:
        if dry_run or journal.stamp() == stamp:
            if recovered:
                tell(recovered)
            raise  # else it may have been read while another writer was at work
    with journal.held(tell) as run:
        recovered = run.recover() or recovered
        before, target, changes = survey()
        if changes:
            run.carry_out(changes, purpose)
        # Every byte was proven as it was written: what is found now is told, and no refusal.
        after, notes = _read_again(before, target)
    paths = [change.path for change in changes]
    return Move(before, after, target, paths, recovered, [*run.not_kept(), *notes])


def _read_again(before: State, target: frozenset[str]) -> tuple[State, list[str]]:
    """The tree as it is after a move, and what has come between."""
    try:
        after = states.read(before.tree, before.patchset)
    except Refused as refusal:
        status = states.PATCHED if target else states.PRISTINE
        after = before._replace(on=target, status=status, files=[])
        return after, [f"it was done, but the tree cannot be read any more: {refusal}"]
    wrong = [file.path for file in after.wrong]
    if after.on != target or wrong:
        what = ", ".join(wrong) or "the slugs"
        return after, [f"it was done, and since then another program has changed {what}"]
    return after, []


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
    image |= {
        path: states.recorded(tree, state.nearest, state.touched, data, image)
        for path, data in records.items()
    }
    # Modules before the hooks that call them, hooks before the modules that go.
    order = [*sorted(laid), *sorted(state.touched), *sorted(gone), *records]
    pairs = [Change(path, tree.read(path), image.get(path)) for path in order]
    return [change for change in pairs if change.before != change.after]


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
