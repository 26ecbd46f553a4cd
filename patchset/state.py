"""What a tree is, from its bytes alone: which release, which slugs are on, which files differ."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple

from patchset import near, provenance
from patchset.diff import blob_id, patched, split, unpatched
from patchset.errors import Refused
from patchset.provenance import ORIGINALS, PROVENANCE, Record
from patchset.record import holds, repaired
from patchset.series import OVERLAY, PatchSet, Release
from patchset.tree import Tree

# Of a file
RIGHT, ABSENT, DRIFTED = "right", "absent", "drifted"
KNOWN = "known"  # its content belongs to another state than the rest of the tree
OUTDATED = "outdated"  # another revision of this patch set made it
STRAY = "stray"  # nothing this tool ever laid
CRLF = "crlf"  # the release's text with other line ends than the release's
STALE = "stale"  # a RECORD whose rows do not match the files
FOREIGN = frozenset({DRIFTED, CRLF, STRAY})  # what this tool did not make and will not touch
# Of a tree
PRISTINE, PATCHED, PARTIAL, UNKNOWN_RELEASE = "pristine", "patched", "partial", "unknown-release"
NEAR = "near"  # as asked, but the release's in its functions only


class FileState(NamedTuple):
    path: str
    status: str
    found: str | None  # blob ids
    expected: str | None


class Touched(NamedTuple):
    """A file that a release's patches touch, as found."""

    found: str | None
    status: str  # KNOWN, OUTDATED, DRIFTED or CRLF
    pristine: bytes | None = None  # of what is KNOWN or OUTDATED
    patches: frozenset[str] = frozenset()  # those that make what is KNOWN of the pristine bytes


class State(NamedTuple):
    tree: Tree
    patchset: PatchSet
    release: Release | None
    status: str
    on: frozenset[str]
    files: list[FileState]
    touched: Mapping[str, Touched]
    nearest: Release  # the release, or for an unknown one that which is most like it
    published: str | None = None  # the name of a published release that no series covers
    differing: Sequence[FileState] = ()  # of a near tree: what is not as the release has it
    laid_near: bool = False  # an earlier run said that the tree is near, and was asked for it

    @property
    def wrong(self) -> list[FileState]:
        return [file for file in self.files if file.status != RIGHT]


class NotMovable(Refused):
    """A tree with files that no revision of the patch set made, or of no covered release."""

    def __init__(self, state: State):
        super().__init__(state.status)
        self.state = state


def read(tree: Tree, patchset: PatchSet) -> State:
    record = provenance.read(tree)
    bytes_of = cache(tree.read)
    views = [
        (release, _touched(tree, release, record, bytes_of))
        for release in patchset.releases.values()
    ]
    # Most files first; a release that says so itself wins only among equals.
    release, touched = max(views, key=lambda view: (_share(*view), view[0].name == record.release))
    exact = _share(release, touched) == 1
    published = None if exact else _uncovered(tree, patchset)
    differing: list[FileState] = []
    nearby = None if exact else _near(tree, patchset, record, bytes_of)
    if nearby:
        wholly = next(view[1] for view in views if view[0].name == nearby[0].name)
        release, touched = nearby
        differing = [
            FileState(
                path, DRIFTED, file.found, patchset.releases[release.name].pristine_ids()[path]
            )
            for path, file in wholly.items()
            if file.status == DRIFTED
        ]
    elif published:
        nearest = patchset.published.nearest(published, patchset.covers)
        release, touched = next(view for view in views if view[0].name == nearest)
    on = _slugs_on(release, touched, record)
    made = image(patchset, release, touched, on)
    files = _touched_states(release, touched, made)
    unknown = State(
        tree, patchset, None, UNKNOWN_RELEASE, frozenset(), files, touched, release, published
    )._replace(differing=differing, laid_near=record.near)
    # As many files as half would not be known if it were that release with a few changes.
    if not nearby and (published or _share(release, touched) < 0.5):
        return unknown
    files += _overlay_states(tree, patchset, release, record, made)
    absent = {file.path for file in files if file.status == ABSENT}
    laid = {path: data for path, data in made.items() if path not in absent}
    for path in tree.records():
        found = tree.read(path) or b""
        want = recorded(tree, release, touched, found, laid)
        record_status = RIGHT if want == found else STALE
        files.append(FileState(path, record_status, blob_id(found), blob_id(want)))
    seen = {file.status for file in files}
    status = NEAR if nearby else PATCHED if on else PRISTINE
    if seen - {RIGHT}:
        status = DRIFTED if seen & FOREIGN else PARTIAL
    return unknown._replace(release=release, status=status, on=on, files=files)


def _near(
    tree: Tree, patchset: PatchSet, record: Record, bytes_of: Callable[[str], bytes | None]
) -> tuple[Release, dict[str, Touched]] | None:
    """The release whose functions the tree has, made for it, and its files."""
    bare = dict[str, bytes | None]()
    paths = {path for release in patchset.releases.values() for path in release.pristine_ids()}
    for path in sorted(paths | record.files.keys()):
        data = bytes_of(path)
        if data is not None:
            original = record.original(tree, path, blob_id(data))
            bare[path] = near.unhooked(patchset, path, data) if original is None else original
            if bare[path] is None:
                return None  # hooks that nothing explains
    release = near.release_of(patchset, bare.get, record.release)
    if not release:
        return None
    touched = {}
    for path in release.pristine_ids().keys() | record.files.keys():
        data, pristine = bytes_of(path), bare.get(path)
        if data is not None and pristine is not None:
            known = _explanation(release, path, data) if path in release.pristine_ids() else None
            if known:
                touched[path] = Touched(blob_id(data), KNOWN, *known)
            elif data != pristine:
                touched[path] = Touched(blob_id(data), OUTDATED, pristine)
    return release, touched


def _uncovered(tree: Tree, patchset: PatchSet) -> str | None:
    """The published release that this tree is, if no series covers it."""
    name = patchset.published.of(tree)
    return name if name and name not in patchset.covers else None


def belongs_to(patchset: PatchSet, path: str, data: bytes) -> list[str]:
    """The releases that know `data` as an image of `path`, pristine or patched."""
    return [
        release.name
        for release in patchset.releases.values()
        if path in release.pristine_ids() and _explanation(release, path, data)
    ]


# Recognising ---------------------------------------------------------------------------------


def _touched(
    tree: Tree, release: Release, record: Record, bytes_of: Callable[[str], bytes | None]
) -> dict[str, Touched]:
    ids = release.pristine_ids()
    found = {path: _touched_file(tree, release, record, path, bytes_of(path)) for path in ids}
    # An older revision may have touched more files. Those that still carry its patches are ours
    # to restore; whatever else became of them is not.
    for path in record.files.keys() - ids.keys():
        data = bytes_of(path)
        original = record.original(tree, path, blob_id(data)) if data is not None else None
        if data is not None and original is not None:
            # Only the tree itself vouches for these bytes.
            tree.refuse_others_rights(path)
            found[path] = Touched(blob_id(data), OUTDATED, original)
    return found


def _touched_file(
    tree: Tree, release: Release, record: Record, path: str, data: bytes | None
) -> Touched:
    if data is None:
        return Touched(None, DRIFTED)
    found = blob_id(data)
    if explanation := _explanation(release, path, data):
        return Touched(found, KNOWN, *explanation)
    original = record.original(tree, path, found)
    if original is not None and blob_id(original) == release.pristine_ids()[path]:
        return Touched(found, OUTDATED, original)
    is_crlf = _explanation(release, path, data.replace(b"\r\n", b"\n"))
    return Touched(found, CRLF if is_crlf else DRIFTED)


def _explanation(release: Release, path: str, data: bytes) -> tuple[bytes, frozenset[str]] | None:
    """The pristine bytes of `path` and the set of patches that makes `data` of them."""
    patches, pristine, lines = release.touching(path), release.pristine_ids()[path], split(data)
    for count in range(len(patches) + 1):
        for some in combinations(patches, count):
            candidate = unpatched(lines, [patch.diffs[path] for patch in some])
            if candidate is not None and blob_id(candidate) == pristine:
                return candidate, frozenset(patch.slug for patch in some)
    return None


def _share(release: Release, touched: Mapping[str, Touched]) -> float:
    """How much of what the release's patches touch is this release's."""
    ids = release.pristine_ids()
    return sum(touched[path].status != DRIFTED for path in ids) / max(len(ids), 1)


def _slugs_on(release: Release, touched: Mapping[str, Touched], record: Record) -> frozenset[str]:
    """The slugs whose files all have them. Where files disagree or cannot tell, the record says."""
    if any(file.status == OUTDATED for file in touched.values()):
        return record.slugs & release.patches.keys()
    votes: dict[str, set[bool]] = {slug: set() for slug in release.patches}
    for path, file in touched.items():
        if file.status == KNOWN:
            for slug in votes.keys() & {patch.slug for patch in release.touching(path)}:
                votes[slug].add(slug in file.patches)
    return frozenset(
        slug
        for slug, cast in votes.items()
        if cast == {True} or (cast != {False} and slug in record.slugs)
    )


# Comparing -----------------------------------------------------------------------------------


def image(
    patchset: PatchSet, release: Release, touched: Mapping[str, Touched], on: Collection[str]
) -> dict[str, bytes]:
    """Every file that the tool answers for, as it is while the slugs `on` are on."""
    pristine = {path: t.pristine for path, t in touched.items() if t.pristine is not None}
    files = {path: patched(data, release.diffs(path, on)) for path, data in pristine.items()}
    if not on:
        return files
    overlay = patchset.laid(on)
    pairs = {path: (pristine[path], files[path]) for path in files if release.diffs(path, on)}
    return {
        **files,
        **overlay,
        **provenance.originals(pairs),
        PROVENANCE: provenance.provenance(release, on, overlay),
    }


def _touched_states(
    release: Release, touched: Mapping[str, Touched], image: Mapping[str, bytes]
) -> list[FileState]:
    states = []
    for path, file in sorted(touched.items()):
        expected = blob_id(image[path]) if path in image else release.pristine_ids()[path]
        status = RIGHT if file.found == expected else file.status
        states.append(FileState(path, status, file.found, expected))
    return states


def _overlay_states(
    tree: Tree, patchset: PatchSet, release: Release, record: Record, image: Mapping[str, bytes]
) -> list[FileState]:
    listed = {path: tree.read(path) for path in tree.files(OVERLAY)}
    # A writer may take a file away between the listing and the reading.
    found = {path: data for path, data in listed.items() if data is not None}
    expected = {path: data for path, data in image.items() if path.startswith(OVERLAY + "/")}
    if not any(path.startswith(ORIGINALS + "/") for path in found):
        # A tree patched with an exported diff has its originals in git.
        expected = {p: d for p, d in expected.items() if not p.startswith(ORIGINALS + "/")}
    states = []
    for path in sorted(found.keys() | expected.keys()):
        want = blob_id(expected[path]) if path in expected else None
        have = blob_id(found[path]) if path in found else None
        if have == want:
            status = RIGHT
        elif have is None:
            status = ABSENT
        elif found[path] == patchset.overlay.get(path):
            status = KNOWN
        elif record.overlay.get(path) == have or provenance.is_own(path, found[path]):
            # This revision may have laid it too, in another state of the tree.
            status = KNOWN if record.digest == release.digest else OUTDATED
        else:
            status = DRIFTED if want else STRAY
        states.append(FileState(path, status, have, want))
    return states


def recorded(
    tree: Tree,
    release: Release,
    touched: Mapping[str, Touched],
    record: bytes,
    files: Mapping[str, bytes],
) -> bytes:
    """A RECORD for a tree that holds `files`. In a near tree a row may have been wrong before the
    set came, since somebody had edited the file: such a row stays, so that it is there at the end.
    """
    if not release.near:
        return repaired(record, touched, files)
    kept = set[str]()
    for path, file in touched.items():
        pristine, found = file.pristine or b"", tree.read(path) or b""
        diffs = [patch.diffs[path] for patch in release.touching(path)]
        counts = range(len(diffs) + 1)
        images = [patched(pristine, some) for n in counts for some in combinations(diffs, n)]
        if not holds(record, path, [found, *images]):
            kept.add(path)
    return repaired(
        record,
        touched.keys() - kept,
        {path: data for path, data in files.items() if path not in kept},
    )
