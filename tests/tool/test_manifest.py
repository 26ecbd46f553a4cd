"""Catches a patch set that lacks a file, or half of one, being taken for whole."""

import shutil
import subprocess
import sys

import pytest

from patchset import manifest
from tests.tool.synthetic import LAID, ROOT, content

OVERLAY = f"overlay/{LAID}"
VICTIMS = [f"{OVERLAY}/shared.py", f"{OVERLAY}/norm_kernel.py", "patches/1.0/norm.patch"]
VICTIMS += ["patches/1.0/series", "patches/1.0/release.json", manifest.MANIFEST]
NOT_WHOLE = "the patch set itself is not whole: "


def emptied(file):
    file.write_bytes(b"")


def cut(file):
    """To whole lines: what is left may well be valid."""
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: len(lines) // 2]))


@pytest.mark.parametrize(
    "damage", [lambda file: file.unlink(), emptied, cut], ids=["gone", "empty", "cut"]
)
@pytest.mark.parametrize("victim", VICTIMS)
def test_apply_verify_and_export_refuse_a_set_that_is_not_whole(victim, damage, house, tree):
    assert house.ask("apply", "norm", "--tree", tree).code == 0
    before, house.whole = content(tree), False
    damage(house.home / victim)
    for argv in (["apply"], ["verify", "norm"], ["apply", "--dry-run"]):
        reply = house.ask(*argv, "--tree", tree)
        assert reply.code == 1
        named = "" if victim == manifest.MANIFEST else f"{victim} is "
        assert NOT_WHOLE + named in reply.shown["message"]
        assert reply.shown["changed"] == []
    assert house.ask("export", "--release", "1.0").code == 1
    assert content(tree) == before


def test_a_file_that_the_manifest_does_not_name_is_refused_too(house, tree):
    house.whole = False
    house.lay("norm_extra.py")
    reply = house.ask("apply", "--tree", tree)
    assert f"{OVERLAY}/norm_extra.py is not in patches/MANIFEST" in reply.shown["message"]


def test_the_first_fault_is_named_and_the_others_counted(house, tree):
    house.whole = False
    for name in ("norm.py", "rope.py", "shared.py"):
        (house.home / OVERLAY / name).unlink()
    message = house.ask("apply", "--tree", tree).shown["message"]
    assert f"{OVERLAY}/norm.py is missing (and 2 more)" in message
    assert "get a complete copy of it" in message


def test_in_a_git_checkout_the_difference_is_shown_before_anything_is_given_up(house, tree):
    house.whole = False
    (house.home / ".git").mkdir()
    (house.home / "tools").mkdir()
    (house.home / "tools/manifest.py").touch()
    (house.home / OVERLAY / "norm.py").write_text("edited\n")
    message = house.ask("apply", "--tree", tree).shown["message"]
    assert f"git -C {house.home} diff -- patches overlay" in message
    assert "tools/manifest.py" in message


def test_bytecode_belongs_to_no_manifest(house, tree):
    house.whole = False
    (house.home / OVERLAY / "__pycache__").mkdir()
    (house.home / OVERLAY / "__pycache__/norm.cpython-311.pyc").touch()
    assert house.ask("apply", "--tree", tree).code == 0


def test_a_tree_can_be_reverted_by_a_set_that_is_not_whole(house, tree):
    before = content(tree)
    house.ask("apply", "--tree", tree)
    house.whole = False
    (house.home / OVERLAY / "norm_kernel.py").unlink()
    assert house.ask("revert", "--tree", tree).code == 0
    assert content(tree) == before


def test_the_list_names_the_digest_of_the_whole_set(house):
    before = house.ask("list").shown
    assert before["digest"] == manifest.digest(house.home)
    assert before["digest"] in house.run("list").out
    house.lay("shared.py", text="# better\n")
    assert house.ask("list").shown["digest"] != before["digest"]


def test_the_tool_that_writes_the_manifest_makes_an_edited_checkout_whole_again(tmp_path):
    for part in ("tools/manifest.py", "ci/entry.py", "patchset", "patches", "overlay"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
    (tmp_path / OVERLAY / "layernorm_note.py").write_text("# mine\n")
    command = [sys.executable, tmp_path / "tools/manifest.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("patches/MANIFEST: written, digest ")
    assert manifest.wrong(tmp_path) == []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "up to date" in done.stdout
