"""Catches a patch that takes in what other patches do, or that damages the patch set it joins."""

import shutil

import pytest

from ci import entry
from patchset import manifest, series
from tests.platform import trees
from tools import export, lint

RELEASE = "0.5.10.post1"  # the newest with a patch of the indexer
FILE = "sglang/srt/layers/attention/nsa/nsa_indexer.py"
SLUGS = [(release, slug) for release in trees.RELEASES for slug in trees.slugs(release)]


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of the patch set, and of each release's touched files, pristine and all on."""
    home = tmp_path / "house"
    for folder in ("patches", "overlay"):
        shutil.copytree(trees.ROOT / folder, home / folder)
    manifest.write(home)
    monkeypatch.setattr(export, "HOUSE", home)
    monkeypatch.setattr(export, "PATCHES", home / "patches")
    monkeypatch.setattr(export, "pristine_tree", lambda release: home / f"pristine-{release}")
    for release, found in series.load(home).releases.items():
        whole = {"pristine": trees.pristine_tree(release), "patched": trees.patched_tree(release)}
        for arm, tree in whole.items():
            for path in found.pristine_ids():
                target = home / f"{arm}-{release}" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tree / path, target)
    return home


def run(monkeypatch, capsys, slug, tree, release=RELEASE):
    words = ["export.py", "--release", release, "--slug", slug, "--tree", str(tree)]
    monkeypatch.setattr("sys.argv", words)
    code = entry.run("export", export.main)
    return code, "".join(capsys.readouterr())


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(("name", "slug"), SLUGS)
def test_a_slug_among_all_others_is_exported_alone(name, slug, house, monkeypatch, capsys):
    patch = house / f"patches/{name}/{slug}.patch"
    before = patch.read_bytes()
    code, said = run(monkeypatch, capsys, slug, house / f"patched-{name}", name)
    assert code == entry.DONE, said
    assert patch.read_bytes() == before
    assert "self-report" in said
    assert manifest.wrong(house) == []


def test_an_edited_slug_keeps_its_header_and_the_set_stays_whole(house, monkeypatch, capsys):
    patch = house / f"patches/{RELEASE}/layernorm.patch"
    tree = house / f"patched-{RELEASE}"
    edit(tree / FILE, "rocm_layernorm\n", "rocm_layernorm  # edited\n")
    before = patch.read_text()
    assert run(monkeypatch, capsys, "layernorm", tree)[0] == entry.DONE
    after = patch.read_text()
    assert "+from sglang.srt.rocm_patches import layernorm as rocm_layernorm  # edited\n" in after
    assert after.partition("diff --git")[0] == before.partition("diff --git")[0]
    assert manifest.wrong(house) == []
    series.load(house)


def test_a_slug_that_is_on_in_part_is_refused(house, monkeypatch, capsys):
    tree = house / f"patched-{RELEASE}"
    edit(tree / FILE, "from sglang.srt.rocm_patches import layernorm as rocm_layernorm\n", "")
    before = manifest.rows(house)
    code, said = run(monkeypatch, capsys, "indexer", tree)
    assert code == entry.REFUSED
    assert "layernorm is on in part" in said
    assert "apply.py revert layernorm" in said
    assert manifest.rows(house) == before


def test_an_edit_beside_another_patch_is_refused_before_it_damages_the_set(
    house, monkeypatch, capsys
):
    tree = house / f"patched-{RELEASE}"
    line = "from sglang.srt.rocm_patches import layernorm as rocm_layernorm\n"
    edit(tree / FILE, line, line + "import neighbour\n")
    before = manifest.rows(house)
    code, said = run(monkeypatch, capsys, "new-thing", tree)
    assert code == entry.REFUSED
    assert "layernorm" in said
    assert manifest.rows(house) == before


def test_a_new_slug_gets_its_header_and_its_place_in_the_series(house, monkeypatch, capsys):
    tree = house / f"patched-{RELEASE}"
    edit(tree / FILE, "from __future__", "# new\nfrom __future__")
    code, said = run(monkeypatch, capsys, "new-thing", tree)
    assert code == entry.DONE, said
    patch = series.load(house).releases[RELEASE].patches["new-thing"]
    assert list(patch.diffs) == [FILE]
    assert patch.trailers["Switch"] == "SGLANG_ROCM_PATCH_NEW_THING"
    assert list(series.load(house).releases[RELEASE].patches)[-1] == "new-thing"
    assert any("`Subject: ?`" in problem for problem in lint.headers(patch))
    assert manifest.wrong(house) == []
    # The same slug for the next release begins with what it says of itself in this one.
    text = (house / f"patches/{RELEASE}/new-thing.patch").read_text()
    filled = text.replace("Subject: ?", "Subject: Do a new thing in one launch")
    (house / f"patches/{RELEASE}/new-thing.patch").write_text(filled)
    other = house / f"patched-{trees.RELEASES[0]}"
    edit(other / FILE, "from __future__", "# new\nfrom __future__")
    assert run(monkeypatch, capsys, "new-thing", other, trees.RELEASES[0])[0] == entry.DONE
    written = (house / f"patches/{trees.RELEASES[0]}/new-thing.patch").read_text()
    assert written.startswith("Subject: Do a new thing in one launch\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"slug": "no-such"}, "has nothing beside"),
        ({"slug": "../x"}, "lower case"),
        ({"slug": "indexer", "release": "9.9"}, "no series; there are"),
        ({"slug": "indexer", "tree": "/nowhere"}, "no sglang in it"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(words, said, house, monkeypatch, capsys):
    given = {"tree": house / f"patched-{RELEASE}"} | words
    before = manifest.rows(house)
    code, told = run(monkeypatch, capsys, **given)
    assert (code, said in told) == (entry.REFUSED, True), told
    assert manifest.rows(house) == before
