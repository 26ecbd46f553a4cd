"""Catches an export that git takes differently from what the tool does, or does not take at all."""

import itertools

import pytest

from tests.tool.synthetic import LAID, SLUGS, content, git, synthetic_tree

WITHOUT_ORIGINALS = f"{LAID}/pristine/"
SUBSETS = [s for n in range(1, 5) for s in itertools.combinations(SLUGS, n)]


def exported(house, *slugs):
    reply = house.run("export", "--release", "1.0", *slugs)
    assert reply.code == 0
    return reply.out.encode()


def repository(root):
    """A fork with sglang below python/."""
    synthetic_tree(root / "python", record=False)
    git("init", "-q", cwd=root)
    git("add", ".", cwd=root)
    git("commit", "-qm", "the release", cwd=root)
    return root


@pytest.mark.parametrize("slugs", SUBSETS, ids="+".join)
def test_git_makes_of_an_export_what_the_tool_makes(slugs, house, tmp_path):
    fork = repository(tmp_path / "fork")
    diff = exported(house, *slugs)
    git("apply", "--check", "--directory=python", given=diff, cwd=fork)
    git("apply", "--directory=python", "--index", given=diff, cwd=fork)
    by_git = content(fork / "python")
    by_tool = synthetic_tree(tmp_path / "tree", record=False)
    house.ask("apply", *slugs, "--tree", by_tool)
    wanted = {p: d for p, d in content(by_tool).items() if not p.startswith(WITHOUT_ORIGINALS)}
    assert by_git == wanted
    git("apply", "-R", "--directory=python", "--index", given=diff, cwd=fork)
    assert git("status", "--porcelain", cwd=fork) == b""


@pytest.mark.parametrize("three_way", [(), ("-3",)], ids=["plain", "3way"])
def test_git_am_takes_it_and_the_tool_knows_the_tree(three_way, house, tmp_path):
    fork = repository(tmp_path / "fork")
    git("am", "-q", *three_way, "--directory=python", given=exported(house), cwd=fork)
    log = git("log", "-1", "--format=%s%n%an%n%b", cwd=fork).decode()
    assert "ROCm patches for sglang 1.0" in log
    assert "* norm: What norm does" in log
    assert house.ask("verify", "--tree", fork).code == 0
    assert house.ask("apply", "--tree", fork).shown["changed"] == []
    assert house.ask("revert", "--tree", fork).code == 0
    assert git("diff", "--stat", "HEAD~1", cwd=fork) == b""


def test_a_three_way_merge_into_an_edited_fork_keeps_both(house, tmp_path):
    fork = repository(tmp_path / "fork")
    pool = fork / "python/sglang/srt/pool.py"
    pool.write_bytes(b"a line of the fork\n" * 9 + pool.read_bytes())
    git("commit", "-qam", "the fork's own", cwd=fork)
    git("am", "-q", "-3", "--directory=python", given=exported(house), cwd=fork)
    text = pool.read_text()
    assert text.startswith("a line of the fork\n")
    assert "rope\n" in text
    assert "store\n" in text


def test_what_a_slug_requires_is_exported_with_it(house):
    assert exported(house, "index") == exported(house, "norm", "index")


def test_the_same_export_is_the_same_bytes(house):
    assert exported(house) == exported(house, *reversed(SLUGS))


def test_a_release_named_by_its_twin_is_exported_by_the_same_series(house):
    assert house.run("export", "--release", "1.0.post1").out.encode() == exported(house)


def test_json_holds_the_diff(house):
    shown = house.ask("export", "--release", "1.0", "norm").shown
    assert shown["diff"].encode() == exported(house, "norm")
    assert shown["release"] == "1.0"


def test_an_unknown_release_is_wrong_usage_with_the_covered_ones(house):
    reply = house.ask("export", "--release", "9.9")
    assert reply.code == 2
    assert "1.0, 1.0.post1" in reply.shown["message"]


def test_carriage_returns_and_missing_last_newlines_survive(house, tmp_path):
    house.lay("norm.py", text="# unended")
    house.lay("shared.py", text="# ends\r\n")
    house.lay("norm_empty.py")
    (house.home / "overlay" / LAID / "norm_empty.py").write_bytes(b"")
    fork = repository(tmp_path / "fork")
    git("apply", "--directory=python", given=exported(house, "norm"), cwd=fork)
    assert house.ask("status", "--tree", fork).shown["status"] == "patched"
