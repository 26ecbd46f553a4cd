"""Catches: stale evidence that is called fresh, or fresh evidence that another slug's edit ages."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patchset import series
from tests import evidence_key
from tools import evidence

HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture
def house(tmp_path):
    """A checkout whose evidence is one measurement of layernorm, made now."""
    for folder in ("patchset", "patches", "overlay", "tools", "bench", "ci", "tests/kernels"):
        shutil.copytree(HOUSE / folder, tmp_path / folder)
    (tmp_path / "evidence").mkdir()
    harness = {"tests/__init__.py", "tests/evidence_key.py", *evidence_key.LAUNCHES}
    for file in harness | evidence_key.of_served():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HOUSE / file, tmp_path / file)
    key = evidence_key.key("Invented GPU", evidence_key.of_bench("layernorm"))
    kept = {"key": key, "rows": [{"tokens": 8192, "ours_us": 2.0, "floor_us": 1.0}]}
    (tmp_path / "evidence/layernorm.Invented-GPU.json").write_text(json.dumps(kept))
    return tmp_path


def judged(house, *arguments):
    return subprocess.run(
        [sys.executable, house / "tools/evidence.py", *arguments], capture_output=True, text=True
    )


def append(house, module):
    edit(house, f"{evidence_key.OVERLAY}/{module}.py", "", "\n# changed\n")


def edit(house, path, old, new):
    text = (house / path).read_text()
    assert old in text
    (house / path).write_text(text.replace(old, new, 1) if old else text + new)


def kept(house, name, files):
    """Evidence of a subject, made now from these files."""
    content = {"key": evidence_key.key("none", files), "rows": [{"slugs": ["indexer"]}]}
    content["key"]["versions"] |= {
        package: evidence_key.pinned(package) for package in ("triton", "tilelang")
    }
    (house / f"evidence/{name}.json").write_text(json.dumps(content))


def stale(house, name, slug):
    found = evidence.judgements(house)
    (row,) = [row for row in found if (row["file"], row["slug"]) == (f"{name}.json", slug)]
    assert row["fresh"] == (not row["changed"])
    return row["changed"]


def test_what_was_measured_from_these_files_is_fresh(house):
    append(house, "indexer_kernel")
    done = judged(house)
    assert done.returncode == 0
    assert done.stdout.split() == ["layernorm.Invented-GPU.json", "layernorm", "fresh"]


def test_a_changed_kernel_is_named_with_the_command_that_measures_again(house):
    append(house, "layernorm_kernel")
    done = judged(house)
    assert done.returncode == 1
    assert f"STALE: {evidence_key.OVERLAY}/layernorm_kernel.py" in done.stdout
    assert "renew: python3 bench/run.py layernorm" in done.stdout
    (row,) = json.loads(judged(house, "--json").stdout)
    assert row["changed"] == [f"{evidence_key.OVERLAY}/layernorm_kernel.py"]


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("bench/layernorm.py", "2 * rank.index_head * ", "rank.index_head * "),  # the floor
        ("bench/harness.py", "CALLS, REPLAYS = 20, 15", "CALLS, REPLAYS = 2, 1"),
        ("bench/shapes.py", "TENSOR_PARALLEL = (1, 4, 8)", "TENSOR_PARALLEL = (1,)"),
        ("bench/upstream.py", 'RELEASE = "0.5.10.post1"', 'RELEASE = "0.5.10"'),
    ],
)
def test_times_age_with_what_measured_them(house, path, old, new):
    edit(house, path, old, new)
    assert stale(house, "layernorm.Invented-GPU", "layernorm") == [path]


@pytest.mark.parametrize("name", ["machine_code", "aot", "recorder", "real_calls"])
def test_machine_code_ages_with_what_compiled_it(house, name):
    kept(house, "aot.gfx942", evidence_key.of_machine_code("indexer"))
    assert stale(house, "aot.gfx942", "indexer") == []
    edit(house, f"tests/kernels/{name}.py", "", "\n# changed\n")
    assert stale(house, "aot.gfx942", "indexer") == [f"tests/kernels/{name}.py"]


def test_hip_source_ages_with_what_wrote_it(house):
    kept(house, "tilelang.gfx942", evidence_key.of_hip_source())
    path = "tests/kernels/hip_source.py"
    edit(house, path, "", "\n# changed\n")
    assert stale(house, "tilelang.gfx942", "indexer") == [path]


@pytest.mark.parametrize(
    ("name", "compiler", "pins", "files"),
    [
        ("aot.gfx950", "triton", "requirements.txt", evidence_key.of_machine_code("indexer")),
        (
            "tilelang.gfx950",
            "tilelang",
            "requirements-no-deps.txt",
            evidence_key.of_hip_source(),
        ),
    ],
)
def test_machine_code_ages_with_its_compilers_version(house, name, compiler, pins, files):
    kept(house, name, files)
    assert stale(house, name, "indexer") == []
    then = evidence_key.pinned(compiler)
    edit(house, f"ci/{pins}", f"{compiler}=={then}", f"{compiler}==99.0")
    assert stale(house, name, "indexer") == [f"{compiler} {then}, now 99.0"]


def test_counts_of_launches_age_with_their_slugs_and_with_what_counts(house):
    kept(house, "launches", evidence_key.of_launches(["indexer"]))
    append(house, "layernorm_kernel")
    assert stale(house, "launches", "indexer") == []
    append(house, "indexer")
    edit(house, evidence_key.LAUNCHES[0], "", "\n# changed\n")
    counted = [f"{evidence_key.OVERLAY}/indexer.py", evidence_key.LAUNCHES[0]]
    assert stale(house, "launches", "indexer") == counted


def test_evidence_without_a_key_is_not_taken_for_fresh(house):
    path = house / "evidence/layernorm.Invented-GPU.json"
    path.write_text(json.dumps(json.loads(path.read_text())["rows"]))
    assert stale(house, "layernorm.Invented-GPU", "layernorm") == ["no key"]


@pytest.mark.parametrize(
    ("subject", "about"),
    [
        ("seeded-faults", {"slug": "indexer"}),
        ("regression-faults", {"slugs": ["layernorm", "indexer"]}),
    ],
)
def test_a_fault_speaks_of_the_slugs_as_they_were(house, subject, about):
    digest = evidence_key.digest_of(about.get("slugs", ["indexer"]))
    judge = evidence_key.digest(evidence_key.of_served())
    row = {"fault": "a fault", "digest": digest, "judged_by": judge} | about
    path = house / f"evidence/{subject}.json"
    path.write_text(json.dumps([row]))
    assert all(row["fresh"] for row in evidence.judgements(house))
    append(house, "indexer")
    assert stale(house, subject, "indexer") == ["digest of indexer"]


@pytest.mark.parametrize("path", ["ci/regression/decide.py", "tests/regression/toy.py"])
def test_a_verdict_on_real_servers_ages_with_what_judged_it(house, path):
    row = {"slugs": ["indexer"], "digest": evidence_key.digest_of(["indexer"])}
    row["judged_by"] = evidence_key.digest(evidence_key.of_served())
    kept = house / "evidence/regression-faults.json"
    kept.write_text(json.dumps([row]))
    edit(house, "ci/regression/throughput.py", "", "\n# changed\n")
    assert stale(house, "regression-faults", "indexer") == []
    edit(house, path, "", "\n# changed\n")
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
    assert stale(house, path.stem, "fp8-kv-write") == ["patch set of 0.5.10.post1"]
