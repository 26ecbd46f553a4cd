"""Catches a move that leaves a tree other than asked: bytes, RECORD, rights, bytecode."""

import itertools
import os
import random
import re
import shutil

import pytest

from tests.tool.synthetic import (
    LAID,
    OVERLAY,
    PRISTINE,
    RECORD,
    SLUGS,
    content,
    git,
    made,
    rows,
    synthetic_tree,
)

SUBSETS = [
    subset
    for size in range(len(SLUGS) + 1)
    for subset in itertools.combinations(SLUGS, size)
    if "index" not in subset or "norm" in subset  # as the release's Requires has it
]


@pytest.mark.parametrize("on", SUBSETS, ids=lambda on: "+".join(on) or "none")
def test_each_subset_has_one_image_in_whatever_order_it_is_reached(on, house, tree, seed):
    before = content(tree)
    for slug in random.sample(on, len(on)):
        house.ask("apply", slug, "--tree", tree)
    reply = house.ask("status", "--tree", tree)
    assert reply.shown["status"] == ("patched" if on else "pristine")
    assert {slug for slug, now in reply.shown["state"].items() if now == "on"} == set(on)
    for path in PRISTINE:
        assert (tree / path).read_bytes() == made(on, path)
    step_by_step = content(tree)
    house.ask("apply", "--tree", tree)
    off = [slug for slug in SLUGS if slug not in on]
    if off:
        assert house.ask("revert", *off, "--tree", tree).code == 0
    assert content(tree) == step_by_step
    assert house.ask("revert", "--tree", tree).code == 0
    assert content(tree) == before


def test_random_walks_between_states_always_end_at_the_release(house, tree, seed):
    before = content(tree)
    for _ in range(30):
        verb = random.choice(["apply", "revert"])
        house.ask(verb, *random.sample(SLUGS, random.randrange(3)), "--tree", tree)
        assert house.ask("status", "--tree", tree).shown["status"] in ("pristine", "patched")
    house.ask("revert", "--tree", tree)
    assert content(tree) == before


@pytest.mark.parametrize(
    ("on", "laid"),
    [
        (["rope"], {"rope.py", "rope_kernel.py"}),
        (["rope-store"], {"rope_store.py", "rope_store_kernel.py"}),
        (["norm"], {"norm.py", "norm_kernel.py"}),
    ],
    ids=lambda value: "+".join(sorted(value)),
)
def test_a_slug_lays_its_own_modules_and_the_shared_ones_only(on, laid, house, tree):
    house.ask("apply", *on, "--tree", tree)
    there = {file.name for file in (tree / LAID).glob("*.py")}
    assert there == laid | {"__init__.py", "shared.py"} < set(OVERLAY)


def test_turning_on_a_slug_turns_on_what_it_requires(house, tree):
    shown = house.ask("apply", "index", "--tree", tree).shown
    assert shown["state"] == {"norm": "on", "index": "on", "rope": "off", "rope-store": "off"}


def test_turning_off_what_an_on_slug_requires_is_refused_by_name(house, tree):
    house.ask("apply", "--tree", tree)
    before = content(tree)
    reply = house.ask("revert", "norm", "--tree", tree)
    assert reply.code == 1
    assert "index is on and requires norm" in reply.shown["message"]
    assert f"revert norm index --tree {tree}" in reply.shown["message"]
    assert content(tree) == before


def test_doing_it_again_is_nothing_to_do_and_writes_nothing(house, tree):
    house.ask("apply", "--tree", tree)
    stamps = {file: file.stat().st_mtime_ns for file in tree.rglob("*")}
    reply = house.ask("apply", "--tree", tree)
    assert (reply.code, reply.shown["changed"]) == (0, [])
    assert {file: file.stat().st_mtime_ns for file in tree.rglob("*")} == stamps


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_dry_run_says_what_would_change_and_writes_nothing(verb, house, tree):
    if verb == "revert":
        house.ask("apply", "--tree", tree)
    before = content(tree)
    planned = house.ask(verb, "--dry-run", "--tree", tree)
    assert content(tree) == before
    assert planned.shown["changed"] == house.ask(verb, "--tree", tree).shown["changed"] != []


def test_only_touched_files_are_read(house, tree):
    (tree / "sglang/other.py").unlink()
    os.mkfifo(tree / "sglang/other.py")  # reading it would wait for ever
    assert house.ask("apply", "--tree", tree).code == 0


# RECORD ---------------------------------------------------------------------------------------


def recorded(tree):
    lines = (tree / RECORD).read_text().splitlines()
    return {line.rsplit(",", 2)[0]: line for line in lines}


def test_record_names_every_file_of_a_patched_tree_with_its_hash(house, tree):
    house.ask("apply", "--tree", tree)
    every = {path: data for path, data in content(tree).items() if "dist-info" not in path}
    assert recorded(tree) == {line.rsplit(",", 2)[0]: line for line in rows(every).splitlines()}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.removesuffix("\n"),
        lambda text: "\n".join(reversed(text.splitlines())),
        lambda text: text.replace("sglang/srt/pool.py,", '"sglang/srt/pool.py",'),
        lambda text: '"sglang/E=1,N=2.json",,\n' + text,
        lambda text: re.sub("(pool.py),.*", r"\1,,", text),
        lambda text: text + "sglang/srt/__pycache__/pool.cpython-311.pyc,,\n../../bin/sglang,,9\n",
    ],
    ids=["pip's crlf", "unended", "reversed", "quoted", "comma", "hashless", "bytecode"],
)
def test_record_of_any_style_comes_back_byte_for_byte(change, house, tree):
    record = tree / RECORD
    record.write_bytes(change(record.read_text()).encode())
    before = record.read_bytes()
    house.ask("apply", "--tree", tree)
    assert record.read_bytes() != before
    assert house.ask("verify", "--tree", tree).code == 0
    house.ask("revert", "index", "--tree", tree)
    house.ask("revert", "--tree", tree)
    assert record.read_bytes() == before


def test_a_record_row_without_a_size_gets_none(house, tree):
    record = tree / RECORD
    lines = record.read_text().splitlines(keepends=True)
    cut = [f"{x.rpartition(',')[0]},\n" if x.startswith("sglang/srt/pool.py") else x for x in lines]
    record.write_text("".join(cut))
    before = content(tree)
    assert house.ask("apply", "--tree", tree).code == 0
    path = "sglang/srt/pool.py"
    row = rows({path: made(SLUGS, path)}).splitlines()[0].rpartition(",")[0]
    assert f"{row},\n" in record.read_text()
    assert house.ask("verify", "--tree", tree).code == 0
    assert house.ask("revert", "--tree", tree).code == 0
    assert content(tree) == before


def test_record_without_a_row_for_a_touched_file_still_loses_only_its_new_rows(house, tree):
    record = tree / RECORD
    record.write_text(re.sub(".*pool.py,.*\n", "", record.read_text()))
    before = record.read_bytes()
    house.ask("apply", "--tree", tree)
    house.ask("revert", "--tree", tree)
    assert record.read_bytes() == before


def test_metadata_that_does_not_own_the_tree_is_left_alone(house, tree):
    (tree / RECORD).write_text(f"__editable__.sglang-1.0.pth,,\n{RECORD},,\n")
    other = tree / "sglang_router-1.0.dist-info/RECORD"
    other.parent.mkdir()
    other.write_text("sglang_router/__init__.py,,\n")
    before = {p: d for p, d in content(tree).items() if "dist-info" in p}
    house.ask("apply", "--tree", tree)
    assert {p: d for p, d in content(tree).items() if "dist-info" in p} == before


def test_the_wheel_that_calls_itself_amd_sglang_has_its_record_repaired_too(house, tree):
    (tree / RECORD).parent.rename(tree / "amd_sglang-0.0.0.dev1+g123.dist-info")
    reply = house.ask("apply", "--tree", tree)
    assert "amd_sglang-0.0.0.dev1+g123.dist-info/RECORD" in reply.shown["changed"]
    assert reply.shown["release"] == "1.0"


def test_files_patched_by_hand_with_a_stale_record_are_partial_until_apply(house, tree):
    stale = (tree / RECORD).read_bytes()
    house.ask("apply", "--tree", tree)
    (tree / RECORD).write_bytes(stale)
    shown = house.ask("status", "--tree", tree).shown
    assert shown["status"] == "partial"
    assert [f["status"] for f in shown["files"] if f["path"] == RECORD] == ["stale"]
    assert house.ask("verify", "--tree", tree).code == 1
    assert house.ask("apply", "--tree", tree).shown["changed"] == [RECORD]
    assert house.ask("verify", "--tree", tree).code == 0


# What surrounds the bytes ---------------------------------------------------------------------


def test_modes_of_changed_files_are_kept_and_new_ones_are_as_the_package(house, tree):
    pool, norm = tree / "sglang/srt/pool.py", tree / "sglang/srt/layers/norm.py"
    pool.chmod(0o755)
    norm.chmod(0o440)
    (tree / "sglang/__init__.py").chmod(0o664)
    (tree / "sglang").chmod(0o775)
    for verb in ("apply", "revert", "apply"):
        house.ask(verb, "--tree", tree)
        assert [f.stat().st_mode & 0o7777 for f in (pool, norm)] == [0o755, 0o440]
    assert (tree / LAID / "norm.py").stat().st_mode & 0o7777 == 0o664
    assert (tree / LAID / "pristine").stat().st_mode & 0o7777 == 0o775


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_owners_are_kept_when_root_patches_a_users_tree(house, tree):
    for file in (tree, *tree.rglob("*")):
        os.chown(file, 1234, 2345)
    house.ask("apply", "--tree", tree)
    owners = {(f.stat().st_uid, f.stat().st_gid) for f in tree.rglob("*")}
    assert owners == {(1234, 2345)}


def test_a_cache_that_shares_its_files_by_hard_links_stays_pristine(house, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "cache", copy_function=os.link)
    before = content(tmp_path / "cache")
    house.ask("apply", "--tree", tree)
    assert content(tmp_path / "cache") == before


def test_bytecode_of_changed_modules_goes_and_other_bytecode_stays(house, tree):
    cached = tree / "sglang/srt/__pycache__"
    for verb in ("apply", "revert"):
        cached.mkdir(exist_ok=True)
        for name in ("pool", "server", "pool_other", "__init__"):
            (cached / f"{name}.cpython-311.pyc").touch()
        house.ask(verb, "--tree", tree)
        left = {file.name.partition(".")[0] for file in cached.iterdir()}
        assert left == {"pool_other", "__init__"}


def test_the_overlays_folder_goes_with_its_bytecode(house, tree):
    before = content(tree)
    house.ask("apply", "--tree", tree)
    (tree / LAID / "__pycache__").mkdir()
    (tree / LAID / "__pycache__/norm.cpython-311.pyc").touch()
    (tree / LAID / "__pycache__/gone_long_ago.cpython-310.pyc").touch()
    assert house.ask("verify", "--tree", tree).code == 0
    house.ask("revert", "--tree", tree)
    assert content(tree) == before
    assert not (tree / LAID).exists()


@pytest.mark.parametrize("link", ["sglang/srt/pool.py", "sglang/srt/layers", RECORD])
def test_a_symbolic_link_inside_the_tree_is_refused_and_kept(link, house, tree, tmp_path):
    file, real = tree / link, tmp_path / "elsewhere"
    file.rename(real)
    file.symlink_to(real)
    before = content(tmp_path)
    reply = house.ask("apply", "--tree", tree)
    assert reply.code == 1
    assert f"{file}" in reply.shown["message"]
    assert "symbolic link" in reply.shown["message"]
    how = f"rm {file} && cp -r" if real.is_dir() else "cp --remove-destination"
    assert how in reply.shown["message"]
    assert file.is_symlink()
    assert content(tmp_path) == before


def test_a_dirty_checkout_inside_another_repository_is_patched_all_the_same(house, tree, tmp_path):
    git("init", "-q", cwd=tmp_path)
    git("config", "apply.whitespace", "fix", cwd=tmp_path)
    git("config", "core.autocrlf", "true", cwd=tmp_path)
    (tmp_path / ".gitattributes").write_text("* text eol=crlf\n")
    (tree / "sglang/other.py").write_text("my own change\n")
    assert house.ask("apply", "--tree", tree).code == 0
    assert house.ask("verify", "--tree", tree).code == 0
    assert git("status", "--porcelain", cwd=tmp_path)


def test_white_space_at_line_ends_survives(house, tmp_path):
    pristine = {"sglang/f.py": b"a  \n\tb\n c \t\r\nd\n"}
    edits = {"norm": {"sglang/f.py": {1: "a  \n \t \n", 3: ""}}}
    house.release("1.0", pristine, edits)
    root = synthetic_tree(tmp_path / "spaces", pristine)
    before = content(root)
    house.ask("apply", "--tree", root)
    assert (root / "sglang/f.py").read_bytes() == b"a  \n \t \n\tb\nd\n"
    house.ask("revert", "--tree", root)
    assert content(root) == before
