"""Catches: evidence that outlives what it was measured from, or that another slug's edit ages."""

import shutil
from pathlib import Path

import pytest

from tests import evidence_key

HOUSE = Path(__file__).resolve().parents[2]
OVERLAY = evidence_key.OVERLAY


@pytest.fixture
def house(tmp_path):
    for folder in ("patches", "overlay"):
        shutil.copytree(HOUSE / folder, tmp_path / folder)
    return tmp_path


def append(path, text="\n# changed\n"):
    path.write_text(path.read_text() + text)


def test_a_key_of_now_is_fresh():
    for slug in ("layernorm", "nsa-fp8-kv"):
        files = evidence_key.modules_of(slug) | evidence_key.patches_of(slug)
        assert evidence_key.changed(evidence_key.key("cpu", files)) == []


def test_a_kernels_key_follows_its_imports_and_nothing_else(house):
    files = evidence_key.modules(["fp8_kv_write_kernel"], house)
    assert {f"{OVERLAY}/{n}.py" for n in ("fp8_kv_write_kernel", "kv_cache", "e4m3")} <= files
    key = evidence_key.key("cpu", files)
    for unrelated in ("layernorm_kernel", "rope_kv_store", "fp8_kv_write", "__init__"):
        append(house / OVERLAY / f"{unrelated}.py")
    append(house / "patches/0.5.10.post1/series")
    assert evidence_key.changed(key, house) == []
    append(house / OVERLAY / "e4m3.py")
    assert evidence_key.changed(key, house) == [f"{OVERLAY}/e4m3.py"]


def test_a_slugs_modules_are_its_own_and_what_they_import():
    names = {Path(path).stem for path in evidence_key.modules_of("rope-kv-store")}
    assert {"rope_kv_store", "rope_kv_store_kernel", "rotary", "kv_cache"} <= names
    assert "fp8_kv_write" not in names
    assert "nsa_fp8_kv_sparse_mla" not in names


def test_a_key_of_the_whole_set_can_be_asked_about_one_slug(house):
    key = evidence_key.key("cpu", evidence_key.everything())
    append(house / OVERLAY / "layernorm.py")
    about = {
        slug: evidence_key.modules_of(slug, house) | evidence_key.patches_of(slug, house)
        for slug in ("layernorm", "indexer")
    }
    assert evidence_key.changed(key, house, about["layernorm"]) == [f"{OVERLAY}/layernorm.py"]
    assert evidence_key.changed(key, house, about["indexer"]) == []


def test_a_file_that_is_gone_or_new_is_a_change(house):
    key = evidence_key.key("cpu", evidence_key.modules(["kv_cache"]))
    (house / OVERLAY / "e4m3.py").unlink()
    assert evidence_key.changed(key, house) == [f"{OVERLAY}/e4m3.py"]
    new = f"{OVERLAY}/layernorm.py"
    assert evidence_key.changed(key, house, [new]) == [new]


def test_a_key_without_files_goes_by_the_digests(house):
    key = {"digests": evidence_key.key("cpu", [])["digests"]}
    assert evidence_key.changed(key, house) == []
    append(house / OVERLAY / "layernorm.py")
    assert evidence_key.changed(key, house) == [*key["digests"]]
