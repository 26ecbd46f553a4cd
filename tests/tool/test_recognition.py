"""Catches a tree taken for what it is not: an edited file moved, a known one refused."""

import json
import shutil

import pytest

from patchset.diff import blob_id
from tests.tool.synthetic import LAID, PRISTINE, RECORD, content, made, numbered, synthetic_tree

NORM, POOL, SERVER = "sglang/srt/layers/norm.py", "sglang/srt/pool.py", "sglang/srt/server.py"


def wrong(shown):
    return {file["path"]: file["status"] for file in shown["files"] if file["status"] != "right"}


def refused(house, tree, says):
    """Both verbs refuse and leave every byte; the reply of apply."""
    before = content(tree)
    for verb in ("revert", "apply"):
        reply = house.ask(verb, "--tree", tree)
        assert reply.code == 1
        assert says in reply.shown["message"]
        assert reply.shown["changed"] == []
        assert content(tree) == before
    return reply


@pytest.mark.parametrize("on", [(), ("norm", "rope")], ids=["pristine", "patched"])
def test_an_edited_file_is_drifted_and_named_with_both_blobs(on, house, tree):
    if on:
        house.ask("apply", *on, "--tree", tree)
    (tree / POOL).write_bytes((tree / POOL).read_bytes().replace(b"pool = 33", b"pool = 34"))
    shown = refused(house, tree, "not as any state").shown
    assert (shown["status"], shown["release"]) == ("drifted", "1.0")
    (file,) = [f for f in shown["files"] if f["path"] == POOL]
    assert file["found"] == blob_id((tree / POOL).read_bytes())
    assert file["expected"] == blob_id(PRISTINE[POOL])
    for words in (POOL, file["found"][:12], file["expected"][:12], "sglang==1.0"):
        assert words in shown["message"]


def test_a_file_of_another_known_release_is_named_with_that_release(house, tree):
    later = {path: data + b"later\n" for path, data in PRISTINE.items()}
    house.release("2.0", later)
    (tree / POOL).write_bytes(later[POOL])
    shown = refused(house, tree, "it is this file of release 2.0").shown
    assert (shown["status"], shown["release"]) == ("drifted", "1.0")


def test_a_patched_file_of_another_release_is_named_with_it_too(house, tree, tmp_path):
    later = {path: data + b"later\n" for path, data in PRISTINE.items()}
    house.release("2.0", later)
    other = synthetic_tree(tmp_path / "later", later)
    house.ask("apply", "--tree", other)
    shutil.copy(other / POOL, tree / POOL)
    refused(house, tree, "it is this file of release 2.0")


def test_a_deleted_file_is_drifted(house, tree):
    (tree / POOL).unlink()
    shown = refused(house, tree, "found no file").shown
    assert wrong(shown) == {POOL: "drifted"}


def test_crlf_line_ends_are_recognised_and_the_command_that_helps_is_named(house, tmp_path):
    root = synthetic_tree(tmp_path / "checkout", record=False)
    (root / POOL).write_bytes(PRISTINE[POOL].replace(b"\n", b"\r\n"))
    reply = refused(house, root, "CRLF line ends")
    assert f"-c core.autocrlf=false checkout -- {root / POOL}" in reply.shown["message"]


def test_a_checkout_wholly_in_crlf_is_told_so_rather_than_called_unknown(house, tmp_path):
    crlf = {path: data.replace(b"\n", b"\r\n") for path, data in PRISTINE.items()}
    root = synthetic_tree(tmp_path / "checkout", crlf, record=False)
    refused(house, root, "core.autocrlf=false")


def test_a_release_that_no_series_covers_is_refused_with_those_that_are(house, tmp_path):
    house.release("2.0", {path: data + b"later\n" for path, data in PRISTINE.items()})
    root = synthetic_tree(tmp_path / "3.0", {p: d + b"latest\n" for p, d in PRISTINE.items()})
    (root / RECORD).parent.rename(root / "sglang-3.0.dist-info")
    shown = refused(house, root, "covered are: 1.0, 1.0.post1, 2.0").shown
    assert (shown["status"], shown["release"]) == ("unknown-release", None)
    assert set(shown["state"].values()) == {"unavailable"}
    assert "calls itself 3.0" in shown["message"]
    assert "none of the files that a patch touches is the same" in shown["message"]
    assert shown["message"].count("\n") == 1
    for path, data in PRISTINE.items():
        (file,) = [file for file in shown["files"] if file["path"] == path]
        assert file["found"] == blob_id(data + b"latest\n")
    assert house.ask("verify", "--tree", root).code == 1
    assert house.ask("status", "--tree", root).code == 0


def test_the_release_is_recognised_by_content_whatever_it_calls_itself(house, tree, tmp_path):
    later = {path: data + b"later\n" for path, data in PRISTINE.items()}
    house.release("2.0", later)
    (tree / RECORD).parent.rename(tree / "sglang-2.0.dist-info")
    (tree / "sglang/_version.py").write_text("__version__ = version = '0.0.0.dev1+gabc'\n")
    assert house.ask("status", "--tree", tree).shown["release"] == "1.0"
    other = synthetic_tree(tmp_path / "later", later)
    assert house.ask("apply", "--tree", other).shown["release"] == "2.0"


def test_releases_that_share_some_files_are_told_apart_by_the_rest(house, tree, tmp_path):
    later = {**PRISTINE, POOL: numbered(50, "later")}
    house.release("2.0", later)
    other = synthetic_tree(tmp_path / "later", later)
    assert house.ask("apply", "--tree", tree).shown["release"] == "1.0"
    assert house.ask("apply", "--tree", other).shown["release"] == "2.0"
    for root in (tree, other):
        assert house.ask("verify", "--tree", root).code == 0


def test_a_file_put_back_by_hand_is_partial_and_apply_heals_it(house, tree):
    house.ask("apply", "norm", "rope", "--tree", tree)
    (tree / NORM).write_bytes(PRISTINE[NORM])
    shown = house.ask("status", "--tree", tree).shown
    assert shown["status"] == "partial"
    assert wrong(shown) == {NORM: "known"}
    (file,) = [f for f in shown["files"] if f["path"] == NORM]
    assert file["expected"] == blob_id(made(["norm", "rope"], NORM))
    assert house.ask("apply", "norm", "--tree", tree).shown["changed"] == [NORM]
    assert house.ask("status", "--tree", tree).shown["status"] == "patched"


@pytest.mark.parametrize("path", [f"{LAID}/norm.py", f"{LAID}/provenance.json"])
def test_an_absent_overlay_file_is_partial_and_apply_lays_it_again(path, house, tree):
    house.ask("apply", "--tree", tree)
    whole = content(tree)
    (tree / path).unlink()
    shown = house.ask("status", "--tree", tree).shown
    assert shown["status"] == "partial"
    assert wrong(shown)[path] == "absent"
    assert house.ask("verify", "--tree", tree).code == 1
    assert house.ask("apply", "--tree", tree).code == 0
    assert content(tree) == whole


def test_an_overlay_copied_by_hand_without_hooks_is_partial_and_revert_takes_it(house, tree):
    before = content(tree)
    shutil.copytree(house.home / "overlay" / LAID, tree / LAID)
    shown = house.ask("status", "--tree", tree).shown
    assert shown["status"] == "partial"
    assert set(shown["state"].values()) == {"off"}
    assert house.ask("revert", "--tree", tree).code == 0
    assert content(tree) == before


def test_hooks_copied_by_hand_without_an_overlay_are_partial_and_move_either_way(house, tree):
    before = content(tree)
    for path in PRISTINE:
        (tree / path).write_bytes(made(["norm", "rope"], path))
    shown = house.ask("status", "--tree", tree).shown
    assert shown["status"] == "partial"
    assert [slug for slug, now in shown["state"].items() if now == "on"] == ["norm", "rope"]
    assert house.ask("revert", "--tree", tree).code == 0
    assert content(tree) == before


def test_the_self_reports_hook_alone_is_partial(house, tree):
    (tree / SERVER).write_bytes(made(["norm"], SERVER))
    assert house.ask("status", "--tree", tree).shown["status"] == "partial"
    assert house.ask("revert", "--tree", tree).shown["changed"][0] == SERVER
    assert house.ask("status", "--tree", tree).shown["status"] == "pristine"


def test_a_strangers_file_in_the_overlays_folder_is_never_removed(house, tree):
    house.ask("apply", "--tree", tree)
    notes = tree / LAID / "my notes.txt"
    notes.write_text("mine")
    reply = refused(house, tree, f"rm '{notes}'")
    assert wrong(reply.shown) == {f"{LAID}/my notes.txt": "stray"}
    assert house.ask("verify", "--tree", tree).code == 1


@pytest.mark.parametrize("name", ["norm.py", "provenance.json", "pristine/files.json"])
def test_an_edited_file_of_the_overlay_is_drifted(name, house, tree):
    house.ask("apply", "--tree", tree)
    (tree / LAID / name).write_text("edited")
    reply = refused(house, tree, f"rm {tree / LAID / name}")
    assert wrong(reply.shown)[f"{LAID}/{name}"] == "drifted"


def test_a_damaged_kept_original_is_drifted(house, tree):
    house.ask("apply", "--tree", tree)
    original = next((tree / LAID / "pristine").glob("*[0-9a-f]"))
    original.write_bytes(b"damaged")
    refused(house, tree, original.name)


def test_a_slug_that_the_release_has_upstream_is_said_to_be_so_and_asking_is_no_error(house, tree):
    folder = house.home / "patches/1.0"
    info = json.loads((folder / "release.json").read_text())
    (folder / "release.json").write_text(json.dumps({**info, "upstream": {"rope": "#1 in 0.9"}}))
    (folder / "series").write_text("norm\nindex\nrope-store\n")
    (folder / "rope.patch").unlink()
    assert house.ask("status", "--tree", tree).shown["state"]["rope"] == "upstream"
    assert "has it whole: #1 in 0.9" in house.run("list").out
    reply = house.ask("apply", "rope", "--tree", tree)
    assert (reply.code, reply.shown["status"]) == (0, "pristine")
    assert house.ask("apply", "--tree", tree).code == 0
    assert house.ask("verify", "--tree", tree).code == 0


def test_a_slug_of_another_release_only_is_unavailable_and_refused_here(house, tree):
    later = {path: data + b"later\n" for path, data in PRISTINE.items()}
    house.release("2.0", later, {"newer": {POOL: {3: "newer\n"}}})
    assert house.ask("status", "--tree", tree).shown["state"]["newer"] == "unavailable"
    reply = house.ask("apply", "newer", "--tree", tree)
    assert reply.code == 1
    assert "newer has no patch for sglang 1.0" in reply.shown["message"]
