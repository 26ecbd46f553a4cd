"""Catches a hunk placed in another function, a conflict that is not said, a state by guess."""

import json
import subprocess

import pytest

from patchset import series
from patchset.diff import parse
from tests.platform.trees import RELEASES, ROOT, pristine_tree
from tools import export, place, port, predicates

OLD = "sglang/srt/nsa/pool.py"
NEW = "sglang/srt/dsa/pool.py"
HEADER = """\
import os

from sglang.srt.alpha import one
from sglang.srt.omega import two
from sglang.srt.utils import three

"""
WRITE = """\
class Pool:
    def read(self, rows):
        return self.nsa_rows[rows]

    def write(self, rows, k):
        first = rows[0]
        if self.nsa_fp8:
            k = k.to(8)
        last = rows[-1]
        self.nsa_rows[first:last] = k
        return k
"""
HOOKED = WRITE.replace(
    "        first = rows[0]\n", "        k = rocm_a.cast(k)\n        first = rows[0]\n"
)
ADDED = "from sglang.srt.rocm_patches import a as rocm_a\n"


def tree(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture
def ported(tmp_path, monkeypatch):
    """A port of one patch from release 1.0 to a release with these files."""
    house = tmp_path / "house"
    with_hook = HEADER.replace("from sglang.srt.utils", f"{ADDED}from sglang.srt.utils")
    old = tree(tmp_path / "old", {OLD: HEADER + WRITE})
    edited = tree(tmp_path / "edited", {OLD: with_hook + HOOKED})
    folder = house / "patches/1.0"
    folder.mkdir(parents=True)
    head = "Subject: What a does here\nSlug: a\nUpstream-Status: missing\n\n"
    (folder / "a.patch").write_text(head + export.diff(old, edited, [OLD]))
    (folder / "series").write_text("a\n")
    (folder / "release.json").write_text(json.dumps({"release": "1.0"}))
    (house / "overlay").mkdir()
    monkeypatch.setattr(export, "pristine_tree", lambda release: old)
    source = series.load(house).release("1.0") if (house / "patches/MANIFEST").exists() else None
    source = source or series._release(folder, {})

    def run(files):
        new = tree(tmp_path / "new", files)
        made = port.Port("2.0", new, source, house)
        made.carry()
        return made

    return run


def placed(made):
    """What the written patch makes of the new release's file."""
    [diff] = parse((made.folder / "a.patch").read_bytes())
    pristine = (made.tree / diff.path).read_bytes()
    return diff.path, place.patched(pristine, [diff]).decode()


def test_a_function_of_the_same_text_takes_its_hunk_in_whatever_file_it_lies(ported):
    made = ported({NEW: HEADER + "x = 1\n\n\n" + WRITE})
    path, text = placed(made)
    assert path == NEW
    assert HOOKED in text
    assert text.index("omega") < text.index(ADDED) < text.index("srt.utils")
    assert "1 functions: same text" in made.done[0]


def test_a_function_that_changed_elsewhere_is_merged_under_its_new_names(ported):
    renamed = WRITE.replace("nsa", "dsa").replace("return k\n", "return k, last\n")
    path, text = placed(ported({NEW: HEADER + renamed}))
    assert (path, "k = rocm_a.cast(k)\n        first" in text) == (NEW, True)
    assert "self.dsa_rows" in text
    assert "return k, last" in text


def test_what_both_changed_is_left_to_a_person_between_markers(ported):
    made = ported({OLD: HEADER + WRITE.replace("first = rows[0]", "first = rows.min()")})
    assert not (made.folder / "a.patch").exists()
    [told] = made.decide
    marked = made.work / "a" / OLD
    assert told.startswith(f"a: {marked.relative_to(made.house)}:")
    with pytest.raises(export.Stop, match="a conflict between markers"):
        export.changed_files(made.tree, made.work / "a")
    # Decided by hand, the next run takes it from there.
    decided = HEADER + HOOKED.replace("first = rows[0]", "first = rows.min()")
    marked.write_text(decided.replace("from sglang.srt.utils", f"{ADDED}from sglang.srt.utils"))
    made.carry()
    assert "decided by hand" in made.done[-1]
    assert placed(made)[1].count("rows.min()") == 1


def test_a_function_that_is_gone_is_named(ported):
    made = ported({OLD: HEADER + WRITE.replace("def write(", "def put(")})
    assert made.decide == [f"a: the release has no Pool.write of {OLD}"]
    assert not (made.folder / "a.patch").exists()


def test_imports_of_two_patches_are_never_neighbours(ported):
    more = "from sglang.srt.model import m\nfrom sglang.srt.nothing import n\n"
    source = place.module_of((more + HEADER + WRITE).encode(), OLD)
    first = place.import_place(source, [ADDED.encode()], set())
    second = place.import_place(source, [ADDED.encode()], {first})
    assert abs(first - second) > 1


def test_a_class_of_another_name_is_not_taken_for_the_functions_own(ported):
    other = "class Other:\n" + WRITE.partition("\n")[2]
    made = ported({NEW: HEADER + other + "\n\n" + WRITE})
    _, text = placed(made)
    assert text.index("class Pool") < text.index("rocm_a.cast")


# What a release has of itself -------------------------------------------------------------------


def test_each_patch_says_of_upstream_what_the_release_says(release):
    """Fails where upstream mends a fault or moves a function, and where a header is out of date."""
    covered = series.load(ROOT).release(release)
    found = {slug: predicates.state(slug, pristine_tree(release)) for slug in predicates.TABLE}
    upstream = {slug for slug, state in found.items() if state.name == predicates.SUPERSEDED}
    assert upstream == set(covered.upstream)
    said = {slug: patch.trailers["Upstream-Status"] for slug, patch in covered.patches.items()}
    assert said == {slug: found[slug].trailer for slug in covered.patches}


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("return self.forward_native(x)", predicates.MISSING),
        ("return layer_norm(x, self.weight)", predicates.SUPERSEDED),
    ],
)
def test_a_slug_is_missing_until_its_function_calls_upstreams_version(tmp_path, text, state):
    source = f"class LayerNorm:\n    def forward_hip(self, x):\n        {text}\n"
    tree(tmp_path, {"sglang/norm.py": source})
    assert predicates.state("layernorm", tmp_path).name == state


def test_what_is_neither_there_nor_mended_has_to_be_looked_at(tmp_path):
    source = "class LayerNorm:\n    def forward_hip(self, x):\n        return other(x)\n"
    tree(tmp_path, {"sglang/norm.py": source})
    with pytest.raises(predicates.MovedError, match=r"LayerNorm\.forward_hip says neither"):
        predicates.state("layernorm", tmp_path)


def test_the_source_of_a_port_is_the_nearest_older_release():
    patches = series.load(ROOT)
    assert port.nearest(patches, "0.5.11").name == "0.5.10.post1"
    assert port.nearest(patches, "0.5.8").name == RELEASES[0]
    assert port.nearest(patches, "9.0").name == RELEASES[-1]


def test_an_unknown_source_is_wrong_usage():
    command = ["python3", "tools/port.py", "9.9", "--from", "7.7", "--no-tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no series covers release 7.7" in done.stderr
