"""Catches a tree that an older revision patched being stuck, or moved on a guess."""

import copy
import os
import random
import shutil

import pytest

from patchset import provenance, staging
from patchset.diff import blob_id
from patchset.tree import Tree
from tests.tool.synthetic import EDITS, LAID, PRISTINE, SLUGS, House, content, synthetic_tree

NORM, INDEX = "sglang/srt/layers/norm.py", "sglang/srt/layers/index.py"
POOL, SERVER = "sglang/srt/pool.py", "sglang/srt/server.py"


def newer(home):
    """The next revision of the set: every kind of change that a revision can bring."""
    edits = copy.deepcopy(EDITS)
    edits["norm"][NORM] = {11: "norm, better\n"}  # other lines of the same file
    edits["index"][INDEX][10] = "index here, better\n"
    edits["index"][SERVER] = {15: "index in one more file\n"}
    edits["rope"] = {INDEX: {30: "rope elsewhere\n"}}  # rope leaves pool.py to rope-store
    edits["rope-store"] = {NORM: {20: "store elsewhere\n"}}  # and now nobody touches pool.py
    edits["new"] = {SERVER: {10: "new\n"}}
    house = House(home)
    house.release("1.0", edits=edits)
    house.lay("__init__.py", "rope.py", "new.py")
    house.lay("norm.py", text="# a better kernel\n")  # norm_kernel.py and more are gone
    return house


@pytest.fixture
def patched(house, tree):
    """A tree that the old revision patched, its checkout wiped; and the pristine content."""
    before = content(tree)

    def by_the_old_revision(*slugs):
        assert house.ask("apply", *slugs, "--tree", tree).code == 0
        shutil.rmtree(house.home)
        return tree, before

    return by_the_old_revision


def fresh(house, root, *slugs):
    tree = synthetic_tree(root)
    assert house.ask("apply", *slugs, "--tree", tree).code == 0
    return content(tree)


@pytest.mark.parametrize("slugs", [(), ("rope",), ("norm", "rope-store")], ids="+".join)
def test_apply_moves_it_to_the_new_revision_exactly(slugs, patched, tmp_path):
    tree, _ = patched(*slugs)
    new = newer(tmp_path / "new")
    shown = new.ask("status", "--tree", tree).shown
    assert shown["status"] == "partial"
    assert "another revision of this set patched it" in shown["message"]
    assert f"apply --tree {tree}" in shown["message"]
    assert new.ask("verify", "--tree", tree).code == 1
    assert new.ask("apply", "--tree", tree).code == 0
    assert content(tree) == fresh(new, tmp_path / "fresh")
    assert new.ask("verify", "--tree", tree).code == 0


@pytest.mark.parametrize("slugs", [(), ("rope",), ("norm", "rope-store")], ids="+".join)
def test_revert_gives_the_release_back(slugs, patched, tmp_path):
    tree, before = patched(*slugs)
    assert newer(tmp_path / "new").ask("revert", "--tree", tree).code == 0
    assert content(tree) == before


def test_the_slugs_that_were_on_stay_on_when_one_more_is_asked_for(patched, tmp_path):
    tree, _ = patched("norm", "rope")
    new = newer(tmp_path / "new")
    shown = new.ask("apply", "new", "--tree", tree).shown
    assert {slug for slug, now in shown["state"].items() if now == "on"} == {"norm", "rope", "new"}
    assert content(tree) == fresh(new, tmp_path / "fresh", "norm", "rope", "new")


def test_a_changed_overlay_alone_makes_it_outdated(house, tree, tmp_path):
    house.ask("apply", "--tree", tree)
    house.lay("shared.py", text="# a better one\n")
    shown = house.ask("status", "--tree", tree).shown
    outdated = {f["path"] for f in shown["files"] if f["status"] == "outdated"}
    assert outdated == {f"{LAID}/shared.py", f"{LAID}/provenance.json"}
    assert set(house.ask("apply", "--tree", tree).shown["changed"]) > outdated
    assert house.ask("verify", "--tree", tree).code == 0


def test_a_slug_that_the_new_revision_no_longer_has_goes(patched, tmp_path):
    tree, _ = patched()
    new = House(tmp_path / "new")
    new.lay("__init__.py", "norm.py")
    new.release("1.0", edits={slug: EDITS[slug] for slug in ("norm", "self-report")})
    assert new.ask("apply", "norm", "--tree", tree).code == 0
    assert content(tree) == fresh(new, tmp_path / "fresh")


def test_an_edit_in_an_outdated_file_is_drifted_not_overwritten(patched, tmp_path):
    tree, _ = patched()
    new = newer(tmp_path / "new")
    (tree / NORM).write_bytes((tree / NORM).read_bytes() + b"my edit\n")
    before = content(tree)
    reply = new.ask("apply", "--tree", tree)
    assert (reply.code, reply.shown["status"]) == (1, "drifted")
    assert NORM in reply.shown["message"]
    assert content(tree) == before


def test_a_file_only_the_old_revision_touched_is_left_alone_once_it_is_somebody_elses(
    patched, tmp_path
):
    tree, _ = patched()
    new = newer(tmp_path / "new")
    (tree / POOL).write_text("from another release\n")
    assert new.ask("apply", "--tree", tree).code == 0
    assert (tree / POOL).read_text() == "from another release\n"


@pytest.mark.parametrize("lie", ["pristine", "patched", "bytes"])
def test_a_record_is_not_believed_without_matching_bytes(lie, patched, tmp_path):
    tree, _ = patched("norm")
    new = newer(tmp_path / "new")
    folder = tree / LAID / "pristine"
    if lie == "bytes":
        for original in folder.glob("*[0-9a-f]"):
            original.write_bytes(b"not these\n")
    else:
        said = (folder / "files.json").read_text()
        (folder / "files.json").write_text(said.replace(f'"{lie}": "', f'"{lie}": "0'))
    before = content(tree)
    reply = new.ask("apply", "--tree", tree)
    assert (reply.code, reply.shown["status"]) == (1, "drifted")
    assert content(tree) == before


def test_a_kept_original_counts_only_if_its_bytes_have_the_blob_id_it_is_named_by(house, tree):
    house.ask("apply", "norm", "--tree", tree)
    found = blob_id((tree / NORM).read_bytes())
    original = tree / LAID / "pristine" / blob_id(PRISTINE[NORM])
    record = provenance.read(Tree(tree / "sglang"))
    assert record.original(Tree(tree / "sglang"), NORM, found) == PRISTINE[NORM]
    original.write_bytes(b"not these\n")
    assert record.original(Tree(tree / "sglang"), NORM, found) is None


def test_kept_originals_of_another_release_do_not_pass_for_this_one(house, tree, tmp_path):
    """The old record is of 1.0; the new revision covers only 2.0, where the same path differs."""
    house.ask("apply", "norm", "--tree", tree)
    later = {**PRISTINE, NORM: b"other\n" * 30}
    new = House(tmp_path / "new")
    new.lay("__init__.py", "norm.py")
    new.release("2.0", later, {slug: EDITS[slug] for slug in ("norm", "self-report")})
    reply = new.ask("apply", "--tree", tree)
    assert (reply.code, reply.shown["status"]) == (1, "drifted")


def test_a_killed_upgrade_is_brought_to_an_end(patched, tmp_path):
    tree, before = patched()
    new = newer(tmp_path / "new")
    for instant in ("finish", "staged"):
        child = os.fork()
        if child == 0:
            setattr(staging.Step, instant, property(lambda _: os._exit(9)))
            new.run("apply", "--tree", tree)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert new.ask("apply", "norm", "--tree", tree).code == 0
        new.ask("revert", "--tree", tree)
        assert content(tree) == before


def test_three_revisions_in_a_row_and_back(house, tree, tmp_path, seed):
    before = content(tree)
    revisions = [house, newer(tmp_path / "new"), house]
    for revision in revisions:
        assert revision.ask("apply", *random.sample(SLUGS, 2), "--tree", tree).code == 0
        assert revision.ask("status", "--tree", tree).shown["status"] == "patched"
    assert newer(tmp_path / "newest").ask("revert", "--tree", tree).code == 0
    assert content(tree) == before
