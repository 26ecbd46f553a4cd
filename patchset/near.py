"""Near trees: files of no covered release, in which every function that a slug enters is proven.

`patches/<release>/functions.json` (tools/functions.py) says of each patch and file which functions
its edits enter, the blob ids of their text before and after, and where the names in them are
imported from. Where all of that is so in a tree, the patch is made anew for the tree's own file:
the edits keep their place in the function, and an import goes below the last of the file's. The
result is an ordinary `Release` whose pristine files are the tree's own, so that everything else
treats it as any other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from patchset.diff import ADDED, REMOVED, Edit, FileDiff, Hunk, blob_id, undone
from patchset.functions import Entered, Function, Module, module
from patchset.series import OVERLAY, SELF_REPORT, Patch, PatchSet, Release

_TRACE = OVERLAY.rpartition("/")[2].encode()  # in every import of the overlay
Bytes = Callable[[str], bytes | None]


class Misfit(Exception):  # noqa: N818
    """Why a patch cannot be placed in a tree."""


def release_of(patchset: PatchSet, base: Bytes, preferred: str | None) -> Release | None:
    """The release that most slugs of this tree are of, with those slugs; None where none fits.

    `base` gives the tree's files without the set's own hooks.
    """
    views = [_fitted(release, base) for release in patchset.releases.values()]
    views = [view for view in views if view.patches]
    return max(views, key=lambda r: (len(r.patches), r.name == preferred), default=None)


def unhooked(patchset: PatchSet, path: str, data: bytes) -> bytes | None:
    """`data` without what patches of this set put in it, None where something of it stays."""
    if _TRACE not in data:
        return data
    read = module(data)
    if not read:
        return None
    lines = [*read.lines]
    for edit in sorted(_to_undo(patchset, path, read), reverse=True):
        lines[edit.start : edit.end] = edit.new
    bare = b"".join(lines)
    return None if _TRACE in bare else bare


# Whether a patch fits -------------------------------------------------------------------------


def _fitted(release: Release, base: Bytes) -> Release:
    """`release` with the patches that fit, made for this tree, and why the others do not."""
    fitting, unfit = dict[str, Patch](), dict[str, str]()
    for patch in release.every:
        try:
            fitting[patch.slug] = _placed(patch, release, base)
            _refuse_neighbours(patch.slug, fitting)
        except Misfit as why:
            fitting.pop(patch.slug, None)
            unfit[patch.slug] = str(why)
    report = fitting.pop(SELF_REPORT, None)
    while alone := [s for s, p in fitting.items() if not {*p.requires} <= {*fitting}]:
        unfit[alone[0]] = f"it requires {', '.join(fitting.pop(alone[0]).requires)}"
    return release._replace(patches=fitting, self_report=report, near=True, unfit=unfit)


def _placed(patch: Patch, release: Release, base: Bytes) -> Patch:
    """`patch` as a diff of the tree's own files."""
    diffs = {}
    for path, diff in patch.diffs.items():
        entered = release.entered.get(patch.slug, {}).get(path)
        if not entered or entered.diff != f"{diff.old_id}..{diff.new_id}":
            raise Misfit(f"functions.json of {release.name} does not know its edits of {path}")
        data = base(path)
        read = module(data) if data is not None else None
        if data is None or not read:
            raise Misfit(f"{path} is {'not there' if data is None else 'nothing that can be read'}")
        edits = [*_edits(diff, path, entered, read)]
        lines = [*read.lines]
        for edit in sorted(edits, reverse=True):
            lines[edit.start : edit.end] = edit.new
        hunks = tuple(_hunk(edit) for edit in sorted(edits))
        diffs[path] = FileDiff(path, blob_id(data), blob_id(b"".join(lines)), hunks)
    return patch._replace(diffs=diffs)


def _edits(diff: FileDiff, path: str, entered: Entered, read: Module) -> Iterator[Edit]:
    inside, imports = _divided(diff, entered)
    for name, known in entered.functions.items():
        function, own = _same(name, known.before, path, read), inside[name]
        shift = function.start - known.start
        moved = [edit._replace(start=edit.start + shift) for edit in own]
        if _text_after(function, read, moved) != known.after:
            raise Misfit(f"{name} in {path} would not be what {diff.new_id[:12]} has")
        yield from moved
    origins = read.origins(entered.imports)
    for name, origin in entered.imports.items():
        if origins.get(name) != origin:
            there = f"is {origins[name]}" if name in origins else "is imported from nowhere"
            raise Misfit(f"{name} in {path} {there}, and not {origin}")
    yield from (edit._replace(start=_below_imports(path, read)) for edit in imports)


def _divided(diff: FileDiff, entered: Entered) -> tuple[dict[str, list[Edit]], list[Edit]]:
    """The edits of `diff` by the function that they lie in, and those that add imports."""
    inside, left = dict[str, list[Edit]](), diff.edits()
    for name, known in entered.functions.items():
        own = [edit for edit in left if known.start < edit.start and edit.end <= known.end]
        inside[name] = own
        left = [edit for edit in left if edit not in own]
    return inside, left


def _same(name: str, text: str, path: str, read: Module) -> Function:
    named = read.named(name)
    same = [function for function in named if function.blob(read.lines) == text]
    if len(same) != 1:
        raise Misfit(f"{name} in {path} {'differs' if named else 'is not there'}")
    return same[0]


def _text_after(function: Function, read: Module, edits: Sequence[Edit]) -> str:
    lines = [*read.lines[function.start : function.end]]
    for edit in sorted(edits, reverse=True):
        lines[edit.start - function.start : edit.end - function.start] = edit.new
    return blob_id(b"".join(lines))


def _below_imports(path: str, read: Module) -> int:
    first = read.functions[0].start if read.functions else len(read.lines)
    above = [i for i in read.imports if not i.indented and i.end <= first]
    if not above:
        raise Misfit(f"{path} has no import statement above its functions")
    return above[-1].end


def _hunk(edit: Edit) -> Hunk:
    lines = [(REMOVED, line) for line in edit.old] + [(ADDED, line) for line in edit.new]
    return Hunk(edit.start, tuple(lines))


def _refuse_neighbours(slug: str, fitting: Mapping[str, Patch]) -> None:
    """Functions may lie closer to each other here than in the release. Imports may touch."""
    for path, diff in fitting[slug].diffs.items():
        for other in fitting.values():
            if other.slug == slug or path not in other.diffs:
                continue
            for one in diff.edits():
                for two in other.diffs[path].edits():
                    apart = max(one.start - two.end, two.start - one.end)
                    if apart < 1 and not (one.start == two.start and not one.old + two.old):
                        raise Misfit(f"it would touch {other.slug} at {path}:{one.start + 1}")


# Taking hooks out again -----------------------------------------------------------------------


class _Hooks(NamedTuple):
    """What one patch has in one function."""

    slug: str
    before: str  # blob id of the function without any patch
    edits: list[Edit]  # relative to the function's first line


def _to_undo(patchset: PatchSet, path: str, read: Module) -> Iterator[Edit]:
    """Edits of `read` that take out what patches of some release put in."""
    imports = set[bytes]()
    done = set[int]()
    for release in patchset.releases.values():
        inside, adds = _hooks(release, path)
        missed = set[str]()  # patches whose hooks are not all as the patch makes them
        for name, hooks in inside.items():
            found = set[str]()
            for function in read.named(name):
                text = read.lines[function.start : function.end]
                bare, slugs = _bare(text, hooks)
                found |= slugs
                if slugs and function.start not in done:
                    done.add(function.start)
                    yield Edit(function.start, tuple(text), tuple(bare))
            missed |= {one.slug for one in hooks} - found
        imports |= {line for slug, lines in adds.items() if slug not in missed for line in lines}
    for statement in read.imports:
        text = read.lines[statement.start : statement.end]
        if not statement.indented and len(text) == 1 and text[0] in imports:
            yield Edit(statement.start, tuple(text), ())


def _hooks(release: Release, path: str) -> tuple[dict[str, list[_Hooks]], dict[str, set[bytes]]]:
    """The hooks of the release's patches in `path` by function, and their imports by slug."""
    inside, imports = dict[str, list[_Hooks]](), dict[str, set[bytes]]()
    for patch in release.touching(path):
        entered = release.entered.get(patch.slug, {}).get(path)
        if not entered:
            continue
        edits, added = _divided(patch.diffs[path], entered)
        for name, known in entered.functions.items():
            own = [edit._replace(start=edit.start - known.start) for edit in edits[name]]
            inside.setdefault(name, []).append(_Hooks(patch.slug, known.before, own))
        imports[patch.slug] = {line for edit in added for line in edit.new}
    return inside, imports


def _bare(text: Sequence[bytes], hooks: Sequence[_Hooks]) -> tuple[list[bytes], set[str]]:
    """The function without the edits of those patches that are in it, proven by its text before."""
    for count in range(1, len(hooks) + 1):
        for some in combinations(hooks, count):
            bare = undone(text, sorted(edit for one in some for edit in one.edits))
            if bare is not None and blob_id(b"".join(bare)) == some[0].before:
                return bare, {one.slug for one in some}
    return [], set()
