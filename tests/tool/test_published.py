"""Catches a published release that is called drifted, or taken for another one."""

import json
import re

import pytest

from patchset import series
from patchset.diff import blob_id
from tests.tool.synthetic import PRISTINE, ROOT, content, numbered, synthetic_tree

NAMES = ("1.0", "1.0.post1", "1.1", "1.2", "1.4", "2.0")
MARKS = ("sglang/srt/args.py", "sglang/srt/runner.py")


def files(name):
    """What a release has: 1.1 shares three of four touched files with 1.0, later ones none."""
    marks = {path: f"{path} of {name}\n".encode() for path in MARKS}
    if name.startswith("1.0"):
        return {**PRISTINE, **marks}
    pool = {"sglang/srt/pool.py": numbered(50, f"pool_{name[0]}")}
    if name == "1.1":
        return {**PRISTINE, **pool, **marks}
    later = f"later in {name}\n".encode()
    return {**{path: data + later for path, data in PRISTINE.items()}, **marks}


@pytest.fixture
def published(house):
    table = {name: [blob_id(files(name)[path]) for path in MARKS] for name in NAMES}
    house.release("2.0", {path: files("2.0")[path] for path in PRISTINE})
    for name, value in {
        "published": {"files": MARKS, "releases": table},
        "upstream": {"norm": {"whole": "1.1"}, "rope": {"part": "1.0", "whole": "1.4"}},
    }.items():
        (house.home / f"patches/{name}.json").write_text(json.dumps(value))
    return house


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("1.1", "it has norm upstream, and rope in part; the nearest series is 1.0"),
        ("1.2", "it has norm upstream, and rope in part; the nearest series is 1.0"),
        ("1.4", "it has norm, rope upstream; the nearest series is 2.0"),
    ],
)
def test_an_uncovered_release_is_named_in_two_lines(name, says, published, tmp_path):
    root = synthetic_tree(tmp_path / "tree", files(name))
    before = content(root)
    for command in ("apply", "revert", "verify", "status"):
        reply = published.ask(command, "--tree", root)
        assert reply.code == (0 if command == "status" else 1)
        first, second = reply.shown["message"].splitlines()
        assert f"{root / 'sglang'} is sglang {name}, which no series covers" in first
        assert "covered are: 1.0, 1.0.post1, 2.0" in first
        assert says in second
        assert (reply.shown["status"], reply.shown["release"]) == ("unknown-release", name)
        assert reply.shown["state"]["norm"] == "upstream"
        assert reply.shown["state"]["index"] == "unavailable"
    assert content(root) == before


def test_a_covered_release_is_not_looked_up(published, tree):
    assert published.ask("apply", "--tree", tree).code == 0
    assert published.ask("status", "--tree", tree).shown["release"] == "1.0"


def test_an_edited_file_of_a_covered_release_is_still_told_as_that(published, tmp_path):
    root = synthetic_tree(tmp_path / "tree", files("1.0"))
    (root / "sglang/srt/pool.py").write_text("edited\n")
    shown = published.ask("status", "--tree", root).shown
    assert (shown["status"], shown["release"]) == ("drifted", "1.0")


def test_an_edited_mark_makes_it_no_published_release(published, tmp_path):
    root = synthetic_tree(tmp_path / "tree", files("1.4"))
    (root / MARKS[0]).write_text("edited\n")
    shown = published.ask("status", "--tree", root).shown
    assert (shown["status"], shown["release"]) == ("unknown-release", None)


# The table of this patch set ------------------------------------------------------------------


def test_the_table_tells_every_release_from_every_other_and_no_patch_touches_its_files():
    patchset = series.load(ROOT)
    known = patchset.published
    assert len({*map(tuple, known.releases.values())}) == len(known.releases)
    assert {"0.5.6", "0.5.8.post1", "0.5.12.post1", "0.5.23"} <= known.releases.keys()
    for release in patchset.releases.values():
        assert not release.pristine_ids().keys() & {*known.files}
        assert {release.name, *release.also} <= known.releases.keys()
    for ids in known.releases.values():
        assert all(re.fullmatch("[0-9a-f]{40}", blob) for blob in ids)
    assert known.since.keys() <= {*patchset.slugs}


def test_the_table_knows_the_pristine_trees(release):
    from patchset.tree import Tree
    from tests.platform.trees import pristine_tree

    assert series.load(ROOT).published.of(Tree(pristine_tree(release) / "sglang")) == release
