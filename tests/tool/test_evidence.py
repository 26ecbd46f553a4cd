"""Catches: stale evidence that is called fresh, or fresh evidence that another slug's edit ages."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evidence import key as keys
from evidence import store
from patchset import series
from tools import evidence

HOUSE = Path(__file__).resolve().parents[2]
ABOUT = {"slugs": ["indexer"]}


@pytest.fixture
def house(tmp_path):
    """A checkout whose evidence is one measurement of layernorm, made now."""
    for folder in ("patchset", "patches", "overlay", "tools", "bench", "ci"):
        shutil.copytree(HOUSE / folder, tmp_path / folder)
    for folder in ("kernels", "regression", "engine"):
        shutil.copytree(HOUSE / "tests" / folder, tmp_path / "tests" / folder)
    shutil.copytree(
        HOUSE / "evidence",
        tmp_path / "evidence",
        ignore=lambda _, names: {name for name in names if name.endswith(("jsonl", "json"))},
    )
    row = {"tokens": 8192, "ours_us": 2.0, "floor_us": 1.0}
    keep(tmp_path, "layernorm.Invented-GPU", keys.of_bench("layernorm"), row)
    return tmp_path


def keep(house, name, code, *rows):
    """Evidence of a subject, made now with this code."""
    key = keys.key("Invented GPU", code)
    key["versions"] |= {package: keys.pinned(package) for package in ("triton", "tilelang")}
    store.write(house / f"evidence/{name}.jsonl", {"key": key}, rows)


def judged(house, *arguments):
    return subprocess.run(
        [sys.executable, house / "tools/evidence.py", *arguments], capture_output=True, text=True
    )


def append(house, module):
    edit(house, f"{keys.OVERLAY}/{module}.py", "", "\nCHANGED = 1\n")


def edit(house, path, old, new):
    text = (house / path).read_text()
    assert old in text
    (house / path).write_text(text.replace(old, new, 1) if old else text + new)


def stale(house, name, slug):
    found = evidence.judgements(house)
    file = name if name.endswith(".json") else f"{name}.jsonl"
    (row,) = [row for row in found if (row["file"], row["slug"]) == (file, slug)]
    assert row["fresh"] == (not row["changed"])
    return row["changed"]


def test_what_was_measured_from_these_files_is_fresh(house):
    append(house, "indexer_kernel")
    done = judged(house)
    assert done.returncode == 0
    assert done.stdout.split() == ["layernorm.Invented-GPU.jsonl", "layernorm", "fresh"]


def test_a_changed_kernel_is_named_with_the_command_that_measures_again(house):
    edit(
        house,
        f"{keys.OVERLAY}/layernorm_kernel.py",
        "def _layernorm_kernel(",
        "def _layernorm_kernel(\n    other_ptr,",
    )
    done = judged(house)
    assert done.returncode == 1
    assert "STALE: _layernorm_kernel" in done.stdout
    assert "renew: python3 bench/run.py layernorm" in done.stdout
    (row,) = json.loads(judged(house, "--json").stdout)
    assert row["changed"] == ["_layernorm_kernel"]


@pytest.mark.parametrize(
    ("path", "old", "new", "changed"),
    [
        ("bench/layernorm.py", "2 * rank.index_head * ", "rank.index_head * ", ["cases"]),  # floor
        (
            "bench/harness.py",
            "CALLS, REPLAYS = 20, 15",
            "CALLS, REPLAYS = 2, 1",
            ["CALLS", "REPLAYS"],
        ),
        (
            "bench/shapes.py",
            "TENSOR_PARALLEL = (1, 4, 8)",
            "TENSOR_PARALLEL = (1,)",
            ["TENSOR_PARALLEL"],
        ),
        ("bench/upstream.py", 'RELEASE = "0.5.10.post1"', 'RELEASE = "0.5.10"', ["RELEASE"]),
    ],
)
def test_times_age_with_what_measured_them(house, path, old, new, changed):
    edit(house, path, old, new)
    assert stale(house, "layernorm.Invented-GPU", "layernorm") == changed


@pytest.mark.parametrize("name", ["aot", "recorder", "real_calls"])
def test_machine_code_ages_with_what_compiled_it(house, name):
    keep(house, "aot.gfx942", keys.of_machine_code("indexer"), ABOUT)
    assert stale(house, "aot.gfx942", "indexer") == []
    edit(house, f"tests/kernels/{name}.py", "", "\nCHANGED = 1\n")
    assert stale(house, "aot.gfx942", "indexer") == ["CHANGED"]


def test_hip_source_ages_with_what_wrote_it(house):
    keep(house, "tilelang.gfx942", keys.of_hip_source(), ABOUT)
    edit(house, "tests/kernels/hip_source.py", "WIDTHS = {", 'WIDTHS = {"int16": 64, ')
    assert stale(house, "tilelang.gfx942", "indexer") == ["WIDTHS"]


@pytest.mark.parametrize(
    ("name", "compiler", "code"),
    [
        ("aot.gfx950", "triton", keys.of_machine_code("indexer")),
        ("tilelang.gfx950", "tilelang", keys.of_hip_source()),
    ],
)
def test_machine_code_ages_with_its_compilers_version(house, name, compiler, code):
    keep(house, name, code, ABOUT)
    assert stale(house, name, "indexer") == []
    then = keys.pinned(compiler)
    (pins,) = [
        p for p in house.glob("ci/requirements*.txt") if f"{compiler}=={then}\n" in p.read_text()
    ]
    edit(house, pins, f"{compiler}=={then}", f"{compiler}==99.0")
    assert stale(house, name, "indexer") == [f"{compiler} {then}, now 99.0"]


def test_counts_of_launches_age_with_their_slugs_and_with_what_counts(house):
    keep(house, "launches", keys.of_launches(["indexer"]), ABOUT)
    append(house, "layernorm_kernel")
    assert stale(house, "launches", "indexer") == []
    append(house, "indexer")
    edit(house, "tests/engine/cases.py", "", "\nCOUNTED = 1\n")
    assert stale(house, "launches", "indexer") == ["CHANGED", "COUNTED"]


def test_evidence_without_a_key_is_not_taken_for_fresh(house):
    path = house / "evidence/layernorm.Invented-GPU.jsonl"
    store.write(path, {}, store.read(path).rows)
    assert stale(house, "layernorm.Invented-GPU", "layernorm") == ["no key"]


@pytest.mark.parametrize(
    ("subject", "about"),
    [
        ("seeded-faults", {"slug": "indexer"}),
        ("regression-faults", {"slugs": ["layernorm", "indexer"]}),
    ],
)
def test_a_fault_speaks_of_the_slugs_as_they_were(house, subject, about):
    digest = keys.digest_of(about.get("slugs", ["indexer"]))
    judge = keys.digest(keys.of_served())
    row = {"fault": "a fault", "digest": digest, "judged_by": judge} | about
    store.write(house / f"evidence/{subject}.jsonl", {}, [row])
    assert all(row["fresh"] for row in evidence.judgements(house))
    append(house, "indexer")
    assert stale(house, subject, "indexer") == ["digest of indexer"]


@pytest.mark.parametrize("path", ["ci/regression/decide.py", "tests/regression/toy.py"])
def test_a_verdict_on_real_servers_ages_with_what_judged_it(house, path):
    row = ABOUT | {
        "digest": keys.digest_of(["indexer"]),
        "judged_by": keys.digest(keys.of_served()),
    }
    store.write(house / "evidence/regression-faults.jsonl", {}, [row])
    edit(house, "ci/regression/throughput.py", "", "\nCHANGED = 1\n")
    assert stale(house, "regression-faults", "indexer") == []
    edit(house, path, "", "\nCHANGED = 1\n")
    assert stale(house, "regression-faults", "indexer") == ["what judges real servers"]


@pytest.mark.parametrize("kind", ["gsm8k", "throughput"])
def test_a_comparison_of_servers_speaks_of_the_patch_set_as_it_was(house, kind):
    release = series.load(HOUSE).releases["0.5.10.post1"]
    about = {"release": release.name, "digest": release.digest, "slugs": ["fp8-kv-write"]}
    path = house / f"evidence/{kind}.minimax-m2.5.Invented-GPU.json"
    path.write_text(json.dumps({"verdict": "PASS", "configuration": about}))
    [row] = [row for row in evidence.judgements(house) if row["file"] == path.name]
    assert (row["slug"], row["fresh"]) == ("fp8-kv-write", True)
    append(house, "layernorm_kernel")
    assert stale(house, path.name, "fp8-kv-write") == ["patch set of 0.5.10.post1"]
