"""Catches: stale evidence that is called fresh, or fresh evidence that another slug's edit ages."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patchset import series
from tests import evidence_key

HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture
def house(tmp_path):
    """A checkout whose evidence is one measurement of layernorm, made now."""
    for folder in ("patchset", "patches", "overlay", "tools"):
        shutil.copytree(HOUSE / folder, tmp_path / folder)
    for folder in ("tests", "evidence"):
        (tmp_path / folder).mkdir()
    for file in ("tests/__init__.py", "tests/evidence_key.py"):
        shutil.copy(HOUSE / file, tmp_path / file)
    key = evidence_key.key("Invented GPU", evidence_key.modules(["layernorm_kernel"]))
    kept = {"key": key, "rows": [{"tokens": 8192, "ours_us": 2.0, "floor_us": 1.0}]}
    (tmp_path / "evidence/layernorm.Invented-GPU.json").write_text(json.dumps(kept))
    return tmp_path


def judged(house, *arguments):
    return subprocess.run(
        [sys.executable, house / "tools/evidence.py", *arguments], capture_output=True, text=True
    )


def append(house, module):
    path = house / evidence_key.OVERLAY / f"{module}.py"
    path.write_text(path.read_text() + "\n# changed\n")


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


def test_evidence_without_a_key_is_not_taken_for_fresh(house):
    path = house / "evidence/layernorm.Invented-GPU.json"
    path.write_text(json.dumps(json.loads(path.read_text())["rows"]))
    assert "STALE: no key" in judged(house).stdout


@pytest.mark.parametrize(
    ("subject", "about"),
    [
        ("seeded-faults", {"slug": "indexer"}),
        ("regression-faults", {"slugs": ["layernorm", "indexer"]}),
    ],
)
def test_a_fault_speaks_of_the_slugs_as_they_were(house, subject, about):
    digest = evidence_key.digest_of(about.get("slugs", ["indexer"]))
    path = house / f"evidence/{subject}.json"
    path.write_text(json.dumps([{"fault": "a fault", "digest": digest} | about]))
    assert judged(house).returncode == 0
    append(house, "indexer")
    assert "STALE: digest of indexer" in judged(house).stdout


@pytest.mark.parametrize("kind", ["gsm8k", "throughput"])
def test_a_comparison_of_servers_speaks_of_the_patch_set_as_it_was(house, kind):
    release = series.load(HOUSE).releases["0.5.10.post1"]
    about = {"release": release.name, "digest": release.digest, "slugs": ["fp8-kv-write"]}
    path = house / f"evidence/{kind}.minimax-m2.5.Invented-GPU.json"
    path.write_text(json.dumps({"verdict": "PASS", "configuration": about}))
    [row] = [row for row in json.loads(judged(house, "--json").stdout) if row["file"] == path.name]
    assert (row["slug"], row["fresh"]) == ("fp8-kv-write", True)
    append(house, "layernorm_kernel")
    assert "STALE: patch set of 0.5.10.post1" in judged(house).stdout
