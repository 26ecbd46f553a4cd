"""Unified diffs against one pristine file, as exact edits of its lines.

Every diff of a file is made against the same pristine bytes and no two of them touch or
neighbour each other, so any subset has one meaning and each edit's place in a patched file
follows from the edits before it. Nothing is ever searched for: a place fits or it does not,
and a blob id proves the whole.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

CONTEXT, REMOVED, ADDED = b" ", b"-", b"+"
_NO_NEWLINE = b"\\"
_INDEX = re.compile(rb"index ([0-9a-f]{40})\.\.([0-9a-f]{40})( 100(?:644|755))?\n")
_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@.*\n")


class DiffError(ValueError):
    pass


class Edit(NamedTuple):
    start: int  # index of the pristine line before which `new` goes and at which `old` begins
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.old)


class Hunk(NamedTuple):
    start: int  # index of its first pristine line
    lines: tuple[tuple[bytes, bytes], ...]  # (CONTEXT | REMOVED | ADDED, text with its newline)

    def old(self) -> list[bytes]:
        return [text for kind, text in self.lines if kind != ADDED]

    def edits(self) -> Iterator[Edit]:
        at, old, new = self.start, list[bytes](), list[bytes]()
        for kind, text in self.lines:
            if kind == REMOVED:
                old.append(text)
            elif kind == ADDED:
                new.append(text)
            else:
                if old or new:
                    yield Edit(at, tuple(old), tuple(new))
                at, old, new = at + len(old) + 1, [], []
        if old or new:
            yield Edit(at, tuple(old), tuple(new))


class FileDiff(NamedTuple):
    path: str
    old_id: str
    new_id: str
    hunks: tuple[Hunk, ...]

    def edits(self) -> list[Edit]:
        return [edit for hunk in self.hunks for edit in hunk.edits()]


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def split(data: bytes) -> list[bytes]:
    """Lines as git counts them: only \\n ends one, and the last may lack it."""
    lines = data.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


# Reading -------------------------------------------------------------------------------------


def parse(text: bytes) -> list[FileDiff]:
    """The file diffs in `text`, after whatever stands above the first `diff --git` line."""
    lines = split(text)
    starts = [n for n, line in enumerate(lines) if line.startswith(b"diff --git ")]
    if not starts:
        raise DiffError("there is no `diff --git` line")
    stops = [*starts[1:], len(lines)]
    return [_file_diff(lines, at, stop) for at, stop in zip(starts, stops, strict=True)]


def _file_diff(lines: Sequence[bytes], at: int, stop: int) -> FileDiff:
    name = re.fullmatch(rb"diff --git a/(\S+) b/\1\n", lines[at])
    if not name:
        raise DiffError(f"line {at + 1}: not `diff --git a/PATH b/PATH` with one plain path")
    path = name[1].decode()
    index = _INDEX.fullmatch(lines[at + 1]) if at + 1 < stop else None
    if not index:
        raise DiffError(
            f"line {at + 2}: {path} needs a full `index <40 hex>..<40 hex> <mode>` line; patches "
            "only change existing text files, new ones belong in the overlay"
        )
    names = [b"--- a/%s\n" % name[1], b"+++ b/%s\n" % name[1]]
    if list(lines[at + 2 : at + 4]) != names or at + 4 >= stop:
        raise DiffError(f"line {at + 3}: {path} needs `---`, `+++` and at least one hunk")
    hunks, at = list[Hunk](), at + 4
    while at < stop:
        hunk, at = _hunk(lines, at, stop)
        if hunks and hunk.start < hunks[-1].start + len(hunks[-1].old()):
            raise DiffError(f"{path}: its hunks overlap or are out of order")
        hunks.append(hunk)
    return FileDiff(path, index[1].decode(), index[2].decode(), tuple(hunks))


def _hunk(lines: Sequence[bytes], at: int, stop: int) -> tuple[Hunk, int]:
    header, first = _HUNK.fullmatch(lines[at]), at + 1
    if not header:
        raise DiffError(f"line {at + 1}: expected a hunk header `@@ -N,N +N,N @@`")
    old_start, old_left, new_left = int(header[1]), int(header[2] or 1), int(header[4] or 1)
    # A hunk without pristine lines names the line it follows, any other the line it begins at.
    start = old_start - 1 if old_left else old_start
    if start < 0:
        raise DiffError(f"line {first}: no line comes before line 1")
    body: list[tuple[bytes, bytes]] = []
    at = first
    while at < stop and (old_left or new_left or lines[at].startswith(_NO_NEWLINE)):
        kind, text = lines[at][:1], lines[at][1:]
        if kind == _NO_NEWLINE and body:
            body[-1] = (body[-1][0], body[-1][1].removesuffix(b"\n"))
        elif kind in (CONTEXT, REMOVED, ADDED) and text.endswith(b"\n"):
            old_left -= kind != ADDED
            new_left -= kind != REMOVED
            body.append((kind, text))
        else:
            raise DiffError(f"line {at + 1}: expected a line that starts with ' ', '+' or '-'")
        at += 1
    if old_left or new_left:
        raise DiffError(f"line {first}: the hunk's lines do not add up to its header")
    return Hunk(start, tuple(body)), at


# Applying ------------------------------------------------------------------------------------


def merged_edits(diffs: Iterable[FileDiff]) -> list[Edit]:
    return sorted(edit for diff in diffs for edit in diff.edits())


def neighbours(one: FileDiff, other: FileDiff) -> int | None:
    """The first pristine line (from 1) at which two diffs of a file touch or neighbour."""
    edits = merged_edits([one, other])
    own = set(one.edits())
    for before, after in pairwise(edits):
        if after.start - before.end < 1 and (before in own) != (after in own):
            return after.start + 1
    # The same edit in both diffs is one entry of `own` twice.
    twice = own & set(other.edits())
    return min(twice).start + 1 if twice else None


def patched(pristine: bytes, diffs: Iterable[FileDiff]) -> bytes:
    """`pristine` with all of `diffs`. Hash both ends: this trusts the edits' old lines."""
    lines = split(pristine)
    for edit in reversed(merged_edits(diffs)):
        lines[edit.start : edit.end] = edit.new
    return b"".join(lines)


def unpatched(lines: Sequence[bytes], diffs: Iterable[FileDiff]) -> bytes | None:
    """The file that became `lines` through exactly these diffs; None where an edit is absent."""
    result = undone(lines, merged_edits(diffs))
    return None if result is None else b"".join(result)


def undone(lines: Sequence[bytes], edits: Iterable[Edit]) -> list[bytes] | None:
    """The lines that became `lines` through exactly these edits, in order; None without one."""
    result, at, shift = list[bytes](), 0, 0
    for edit in edits:
        start = edit.start + shift
        stop = start + len(edit.new)
        if tuple(lines[start:stop]) != edit.new:
            return None
        result += lines[at:start]
        result += edit.old
        at = stop
        shift += len(edit.new) - len(edit.old)
    return [*result, *lines[at:]]


# Writing -------------------------------------------------------------------------------------


def merged_hunks(diffs: Sequence[FileDiff]) -> list[Hunk]:
    """One list of hunks for several diffs of a file, joined where their context meets."""
    clusters: list[list[Hunk]] = []
    end = -1
    for hunk in sorted((hunk for diff in diffs for hunk in diff.hunks), key=lambda h: h.start):
        if hunk.start > end:
            clusters.append([])
        clusters[-1].append(hunk)
        end = max(end, hunk.start + len(hunk.old()))
    return [_joined(cluster) for cluster in clusters]


def _joined(hunks: list[Hunk]) -> Hunk:
    if len(hunks) == 1:
        return hunks[0]
    pristine = {h.start + n: text for h in hunks for n, text in enumerate(h.old())}
    at, body = hunks[0].start, list[tuple[bytes, bytes]]()
    for edit in sorted(edit for hunk in hunks for edit in hunk.edits()):
        body += [(CONTEXT, pristine[n]) for n in range(at, edit.start)]
        body += [(REMOVED, text) for text in edit.old]
        body += [(ADDED, text) for text in edit.new]
        at = edit.end
    body += [(CONTEXT, pristine[n]) for n in range(at, max(pristine, default=at - 1) + 1)]
    return Hunk(hunks[0].start, tuple(body))


def render(hunks: Iterable[Hunk]) -> bytes:
    out, shift = list[bytes](), 0
    for hunk in hunks:
        old = sum(kind != ADDED for kind, _ in hunk.lines)
        new = sum(kind != REMOVED for kind, _ in hunk.lines)
        # As when reading: a side without lines names the line it follows.
        old_start = hunk.start + (old > 0)
        new_start = hunk.start + shift + (new > 0)
        out.append(b"@@ -%d,%d +%d,%d @@\n" % (old_start, old, new_start, new))
        for kind, text in hunk.lines:
            ended = text if text.endswith(b"\n") else text + b"\n\\ No newline at end of file\n"
            out.append(kind + ended)
        shift += new - old
    return b"".join(out)
