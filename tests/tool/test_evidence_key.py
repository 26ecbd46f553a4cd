"""Catches: evidence that outlives the code it was measured from, or that an unrelated edit ages."""

import shutil
from pathlib import Path

import pytest

from evidence import key as keys
from evidence.code import merged, reached

HOUSE = Path(__file__).resolve().parents[2]
OVERLAY = keys.OVERLAY
KERNEL = f"{OVERLAY}/fp8_kv_write_kernel.py"


@pytest.fixture
def house(tmp_path):
    for folder in ("patches", "overlay"):
        shutil.copytree(HOUSE / folder, tmp_path / folder)
    return tmp_path


def append(path, text="\nCHANGED = 1\n"):
    path.write_text(path.read_text() + text)


# The syntax that counts --------------------------------------------------------------------------

MODULE = '''"""A module."""
import os
from bench.other import helper

SIZE = 4


def used(x):
    """What it does."""
    # why
    return helper(x, SIZE)


def unused():
    return os.sep
'''
OTHER = "def helper(x, size):\n    return x * size\n\n\ndef alone():\n    return 1\n"


@pytest.fixture
def made(tmp_path):
    """The code that ``used`` of a small module reaches, after edits of its text."""

    def code(*edits, other=OTHER, start="bench/one.py"):
        text = MODULE
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "bench").mkdir(exist_ok=True)
        (tmp_path / "bench/one.py").write_text(text)
        (tmp_path / "bench/other.py").write_text(other)
        (tmp_path / "bench/start.py").write_text("from bench import one\n\none.used(1)\n")
        return reached([start], tmp_path)

    return code


@pytest.mark.parametrize(
    "edit",
    [
        ("    # why\n", ""),
        ('    """What it does."""\n', ""),
        ('"""A module."""', '"""Another text."""'),
        ("return helper(x, SIZE)", "return helper(\n        x,\n        SIZE,\n    )"),
        ("SIZE = 4\n", "SIZE = 4\n\n\n"),
    ],
)
def test_comments_docstrings_and_line_breaks_change_nothing(made, edit):
    assert made(edit) == made()


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (("SIZE = 4", "SIZE = 5"), {"SIZE"}),
        (("helper(x, SIZE)", "helper(SIZE, x)"), {"used"}),
        (("os.sep", "os.curdir"), {"unused"}),
        (("def unused():", "@functools.cache\ndef unused():"), {"unused"}),
    ],
)
def test_a_change_of_what_runs_names_the_definition(made, edit, changed):
    before, after = made(), made(edit)
    assert {name for name in after if after[name] != before.get(name)} == changed


def test_what_is_used_is_followed_and_nothing_else(made):
    assert made(start="bench/start.py").keys() == {"start (top level)", "used", "helper", "SIZE"}
    before = made(start="bench/start.py")
    assert made(("os.sep", "os.curdir"), start="bench/start.py") == before
    assert made(other=OTHER.replace("return 1", "return 2"), start="bench/start.py") == before
    after = made(other=OTHER.replace("x * size", "size"), start="bench/start.py")
    assert {name for name in after if after[name] != before[name]} == {"helper"}


def test_a_definition_that_moves_to_another_file_is_the_same(made, tmp_path):
    before = made()
    moved = OTHER + "\n\nSIZE = 4\n"
    assert made(("SIZE = 4\n", "from bench.other import SIZE\n"), other=moved) == before


def test_definitions_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "a.py").write_text("def main():\n    return 1\n")
    (tmp_path / "b.py").write_text("def main():\n    return 2\n")
    both = reached(["a.py", "b.py"], tmp_path)
    assert both == merged(reached(["a.py"], tmp_path), reached(["b.py"], tmp_path))
    assert keys.changed({"code": both}, reached(["b.py"], tmp_path)) == []
    assert keys.changed({"code": reached(["a.py"], tmp_path)}, both) == ["main"]


def test_a_patch_counts_by_its_hunks(house):
    path = "patches/0.5.9/indexer.patch"
    assert path in keys.sources_of("indexer", release="0.5.9")
    before = reached([path], house)
    text = (house / path).read_text()
    (house / path).write_text(text.replace("Subject: ", "Subject: Another "))
    assert reached([path], house) == before
    (house / path).write_text(text.replace("\n+", "\n+ ", 1))
    assert reached([path], house).keys() == before.keys()
    assert reached([path], house) != before


# What decides a slug's evidence ------------------------------------------------------------------


def test_a_key_of_now_is_fresh():
    for slug in ("layernorm", "nsa-fp8-kv"):
        assert keys.changed(keys.key("cpu", keys.of_slug(slug)), keys.of_slug(slug)) == []


def test_a_kernels_key_follows_what_it_uses_and_nothing_else(house):
    key = keys.key("cpu", reached([KERNEL], house))
    assert {"write_kv", "_write_kv_kernel", "LayerCache", "E4M3_MAX"} <= key["code"].keys()
    for unrelated in ("layernorm_kernel", "rope_kv_store", "fp8_kv_write", "__init__"):
        append(house / OVERLAY / f"{unrelated}.py")
    append(house / "patches/0.5.10.post1/series")
    assert keys.changed(key, reached([KERNEL], house)) == []
    e4m3 = house / OVERLAY / "e4m3.py"
    e4m3.write_text(e4m3.read_text().replace("240", "224"))
    assert keys.changed(key, reached([KERNEL], house)) == ["E4M3_MAX"]


def test_a_slugs_sources_are_its_own():
    names = {Path(path).stem for path in keys.sources_of("rope-kv-store")}
    assert {"rope_kv_store", "rope_kv_store_kernel", "rope-kv-store"} <= names
    assert not any(name.startswith(("fp8_kv_write", "nsa_fp8_kv")) for name in names)


def test_a_key_of_the_whole_set_can_be_asked_about_one_slug(house):
    key = keys.key("cpu", keys.of_tests())
    append(house / OVERLAY / "layernorm.py")
    assert keys.changed(key, keys.of_slug("layernorm", house)) == ["CHANGED"]
    assert keys.changed(key, keys.of_slug("indexer", house)) == []


def test_a_definition_that_is_gone_ages_what_used_it(house):
    key = keys.key("cpu", reached([KERNEL], house))
    kernel = house / KERNEL
    kernel.write_text(kernel.read_text().replace("LayerCache", "Cache"))
    assert "write_kv" in keys.changed(key, reached([KERNEL], house))


def test_a_key_without_code_is_stale():
    assert keys.changed({"digests": {}}, keys.of_slug("indexer")) == [*keys.of_slug("indexer")]
