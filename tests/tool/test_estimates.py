"""Catches an estimate for AMD below what a launch costs, or with another GPU's launches."""

import pytest

from evidence import store
from tools import evidence, report

ROW = {"work": "head gates", "model": "GLM-5", "tp": 1, "tokens": 64, "cache_dtype": "bf16"}
BANDWIDTH = 4.0e6  # of the measured device, bytes in a microsecond


def test_many_bytes_take_what_the_peak_bandwidth_allows():
    row = ROW | {"floor_us": 20.0, "empty_us": 0.5}
    found = report.estimates(row, BANDWIDTH, {"MI300X": 2, "MI355X": 1})
    assert found == {chip: pytest.approx(20 * 4.0e6 / peak) for chip, peak in report.HBM.items()}
    assert report.HBM == {"MI300X": 5.3e6, "MI355X": 8.0e6}


def test_few_bytes_take_the_chips_own_launches():
    row = ROW | {"floor_us": 0.1, "empty_us": 0.5}
    launches = {"MI300X": 2, "MI355X": 1}
    assert report.estimates(row, BANDWIDTH, launches) == {"MI300X": 1.0, "MI355X": 0.5}
    assert report.estimates(row, None, launches) == {"MI300X": None, "MI355X": None}


@pytest.fixture
def house(tmp_path):
    (tmp_path / "evidence").mkdir()
    of_two = ROW | {"slug": "indexer", "cache_dtype": "–", "launches": 2}
    split = {"models": ["GLM-5 TP8"], "tokens": [1, 64], "splits": 8}
    whole = split | {"tokens": [16384], "splits": 1}
    store.write(tmp_path / "evidence/aot.gfx942.jsonl", {"launches": [of_two]}, [])
    store.write(tmp_path / "evidence/tilelang.gfx950.jsonl", {}, [split, whole])
    return tmp_path


@pytest.mark.parametrize(
    ("arch", "call", "launches"),
    [
        ("gfx942", {}, 2),
        ("gfx950", {}, 1),
        ("gfx942", {"tokens": 8192}, 1),
        ("gfx950", {"work": "sparse attention", "tp": 8}, 2),
        ("gfx950", {"work": "sparse attention", "tp": 8, "tokens": 16384}, 1),
        ("gfx950", {"work": "write", "tp": 8}, 1),
    ],
)
def test_launches_are_those_of_the_chips_own_forms(house, arch, call, launches):
    compiled = evidence.load(house, f"*.{arch}.jsonl")
    assert report.amd_launches(compiled, "indexer", ROW | call) == launches
