"""Catches a hunk that lands on a wrong line, or a merge of patches that git reads otherwise."""

import itertools
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patchset.diff import (
    REMOVED,
    DiffError,
    blob_id,
    merged_hunks,
    neighbours,
    parse,
    patched,
    render,
    split,
    unpatched,
)
from tests.tool.synthetic import diff, git, numbered, replaced

PATH = "sglang/f.py"
# Few different lines, so that a wrong place often looks right.
LINES = st.sampled_from([b"\n", b"a\n", b"b\n", b"    return x\n", b"\tb\n", b"c \r\n", b"d\re\n"])


@st.composite
def files_and_edits(draw):
    """Pristine lines, and disjoint edits one untouched line or more apart, each of some patch."""
    pristine = draw(st.lists(LINES, max_size=40))
    if pristine and draw(st.booleans()) and pristine[-1] != b"\n":
        pristine[-1] = pristine[-1].removesuffix(b"\n")
    patches = draw(st.integers(1, 4))
    edits, at = [], 0
    while at <= len(pristine):
        at += draw(st.integers(0, 6))
        size = draw(st.integers(0, 3))
        if at + size > len(pristine):
            break
        new = draw(st.lists(LINES, max_size=3))
        last = at + size == len(pristine)
        if last and new and new[-1] != b"\n" and draw(st.booleans()):
            new[-1] = new[-1].removesuffix(b"\n")
        unended = pristine and not pristine[-1].endswith(b"\n")
        if new != pristine[at : at + size] and not (last and unended and size == 0):
            edits.append((draw(st.integers(0, patches - 1)), at, size, new))
        at += size + 1
    return pristine, edits, patches


def edited(pristine, edits, on):
    lines = list(pristine)
    for patch, at, size, new in reversed(edits):
        if patch in on:
            lines[at : at + size] = new
    return b"".join(lines)


def as_drawn(pristine, edits, patch, read):
    """Whether git makes of each edit's place what the edit does; among equal lines it may not.

    The patch alone is the same then, but together with another it means something else.
    """
    inside = []
    for owner, at, size, new in edits:
        if owner == patch:
            here = [e for e in read.edits() if at <= e.start and e.end <= at + size]
            lines = pristine[at : at + size]
            for edit in reversed(here):
                lines[edit.start - at : edit.end - at] = edit.new
            if lines != new:
                return False
            inside += here
    return inside == read.edits()


def lands_as_said(text, hunks, made):
    """Whether each hunk's header names the place where its lines are in the made file."""
    said = re.findall(rb"^@@ -\d+,\d+ \+(\d+),(\d+) @@$", text, re.MULTILINE)
    for (start, count), hunk in zip(said, hunks, strict=True):
        new = [line for kind, line in hunk.lines if kind != REMOVED]
        first = int(start) - (int(count) > 0)
        if split(made)[first : first + int(count)] != new:
            return False
    return True


def subsets(count):
    return itertools.chain.from_iterable(
        itertools.combinations(range(count), size) for size in range(count + 1)
    )


@settings(deadline=None, max_examples=100)
@given(files_and_edits())
def test_any_subset_of_random_patches_goes_on_and_off_as_git_would(case):
    pristine, edits, count = case
    old = b"".join(pristine)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        texts = [diff(PATH, old, edited(pristine, edits, {n}), scratch) for n in range(count)]
        diffs = [parse(text)[0] for text in texts if text]
        owners = [n for n, text in enumerate(texts) if text]
        drawn = zip(owners, diffs, strict=True)
        assume(all(as_drawn(pristine, edits, n, read) for n, read in drawn))
        assert all(neighbours(a, b) is None for a, b in itertools.combinations(diffs, 2))
        target = scratch / PATH
        target.parent.mkdir()
        for some in subsets(len(diffs)):
            chosen = [diffs[n] for n in some]
            made = patched(old, chosen)
            assert made == edited(pristine, edits, {owners[n] for n in some})
            assert unpatched(split(made), chosen) == old
            assert patched(old, reversed(chosen)) == made
            if chosen:
                head = f"diff --git a/{PATH} b/{PATH}\n--- a/{PATH}\n+++ b/{PATH}\n".encode()
                target.write_bytes(old)
                text = render(merged_hunks(chosen))
                git("apply", given=head + text, cwd=scratch)
                assert lands_as_said(text, merged_hunks(chosen), made)
                assert target.read_bytes() == made
            if len(chosen) == 1:
                assert (chosen[0].old_id, chosen[0].new_id) == (blob_id(old), blob_id(made))


@settings(deadline=None, max_examples=60)
@given(files_and_edits(), st.data())
def test_taking_off_a_patch_that_is_not_on_is_noticed(case, data):
    pristine, edits, count = case
    old = b"".join(pristine)
    on = data.draw(st.sets(st.integers(0, count - 1)))
    with tempfile.TemporaryDirectory() as folder:
        texts = [diff(PATH, old, edited(pristine, edits, {n}), Path(folder)) for n in range(count)]
    diffs = {n: parse(text)[0] for n, text in enumerate(texts) if text}
    assume(all(as_drawn(pristine, edits, n, read) for n, read in diffs.items()))
    made = edited(pristine, edits, on & diffs.keys())
    for some in subsets(count):
        if diffs.keys() >= {*some}:
            back = unpatched(split(made), [diffs[n] for n in some])
            right = edited(pristine, edits, {*some}) == made
            assert (back is not None and blob_id(back) == blob_id(old)) == right


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"", b"a\nb\n"), (b"a\nb\n", b""), (b"a", b"a\n"), (b"a\n", b"a"), (b"", b"a"), (b"a", b"b")],
    ids=str,
)
def test_files_that_begin_or_end_empty_or_without_a_newline(old, new, tmp_path):
    (read,) = parse(diff(PATH, old, new, tmp_path))
    assert patched(old, [read]) == new
    assert unpatched(split(new), [read]) == old
    assert diff(PATH, old, new, tmp_path).endswith(render(merged_hunks([read]))[-20:])


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ({5: "x\n"}, {7: "y\n"}, True),
        ({5: "x\n"}, {6: "y\n"}, False),
        ({5: "x\n"}, {5: "y\n"}, False),
        ({5: "x\n"}, {5: "x\n"}, False),
        ({5: ""}, {6: ""}, False),
        ({5: "line = 5\nx\n"}, {6: "y\n"}, False),
        ({5: "line = 5\nx\n"}, {7: "y\n"}, True),
        ({5: "line = 5\nx\n"}, {6: "y\nline = 6\n"}, False),
        ({1: "x\n"}, {9: "x\n"}, True),
    ],
    ids=str,
)
def test_hunks_of_two_patches_are_apart_by_one_untouched_line(first, second, apart, tmp_path):
    old = numbered(9)
    one, other = (parse(diff(PATH, old, replaced(old, e), tmp_path))[0] for e in (first, second))
    assert (neighbours(one, other) is None) == apart
    assert (neighbours(other, one) is None) == apart


GOOD = b"""diff --git a/f b/f
index 1111111111111111111111111111111111111111..2222222222222222222222222222222222222222 100644
--- a/f
+++ b/f
@@ -1,2 +1,2 @@
 a
-b
+c
"""


def test_a_well_formed_diff_is_read_after_any_header():
    (read,) = parse(b"Subject: x\n\nprose\n\n" + GOOD)
    assert read.path == "f"
    assert [edit[:] for edit in read.edits()] == [(1, (b"b\n",), (b"c\n",))]


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        (b"diff --git a/f b/f\n", b"", "no `diff --git` line"),
        (b"a/f b/f\n", b"a/f b/g\n", "one plain path"),
        (b"1111..", b"..", "full `index"),
        (b"index", b"new file mode 100644\nindex", "belong in the overlay"),
        (b"+++ b/f\n", b"+++ b/g\n", "`---`, `+++`"),
        (b"@@ -1,2 +1,2 @@", b"@@ -1,3 +1,2 @@", "do not add up"),
        (b"@@ -1,2 +1,2 @@", b"@@ -0,2 +1,2 @@", "before line 1"),
        (b"@@ -1,2 +1,2 @@", b"@@", "hunk header"),
        (b" a\n", b"\n", "starts with"),
        (b"+c\n", b"+c\n-- \n2.40\n", "hunk header"),
        (b"+c\n", b"+c\n@@ -1,1 +1,1 @@\n-a\n+b\n", "out of order"),
        (b"+c\n", b"", "do not add up"),
    ],
)
def test_a_malformed_diff_is_refused_with_its_fault(was, becomes, says):
    with pytest.raises(DiffError, match=re.escape(says)):
        parse(GOOD.replace(was, becomes, 1))
