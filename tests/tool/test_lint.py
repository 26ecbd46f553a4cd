"""Catches: a lint that lets a malformed header, a thick hook or a stale table through."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import evidence_key

HOUSE = Path(__file__).resolve().parents[2]
OVERLAY = evidence_key.OVERLAY
PATCH = "patches/0.5.10.post1/layernorm.patch"


@pytest.fixture
def house(tmp_path):
    """A copy of what lint reads."""
    for folder in ("patchset", "patches", "overlay", "tools", "tests/references", "tests/kernels"):
        shutil.copytree(HOUSE / folder, tmp_path / folder)
    shutil.copytree(HOUSE / "evidence", tmp_path / "evidence")
    for file in ("README.md", "tests/__init__.py", "tests/evidence_key.py"):
        shutil.copy(HOUSE / file, tmp_path / file)
    return tmp_path


def lint(house, *arguments):
    return subprocess.run(
        [sys.executable, house / "tools/lint.py", *arguments], capture_output=True, text=True
    )


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_set_as_it_is_has_no_problems(house):
    done = lint(house)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Numerics: ", "Numbers: ", "no trailer `Numerics:`"),
        ("Numerics: ", "Numerics: about ", "`Numerics: about "),
        ("Upstream-PR: #", "Upstream-PR: PR ", "`Upstream-PR: PR "),
        ("Upstream-Status: ", "Upstream-Status: partly ", "`Upstream-Status: partly "),
        ("Slug: layernorm", "Slug: layer-norm", "`Slug:` must be layernorm"),
        ("_LAYERNORM", "_LAYER_NORM", "`Switch:` must be SGLANG_ROCM_PATCH_LAYERNORM"),
        ("Hardware: ", "Hardware: H200, ", "`Hardware: H200, "),
        ("Subject: ", "Mood: good\nSubject: ", "unknown trailer `Mood:`"),
    ],
)
def test_a_missing_or_malformed_trailer_is_named(house, old, new, problem):
    edit(house / PATCH, old, new)
    done = lint(house)
    assert done.returncode == 1
    assert f"lint: {PATCH}: {problem}" in done.stdout


def test_all_problems_are_reported_in_one_go(house):
    edit(house / PATCH, "Numerics: ", "Numbers: ")
    (house / "tests/references/layernorm.py").unlink()
    (house / "tests/kernels/test_indexer.py").unlink()
    told = lint(house).stdout
    assert "no trailer `Numerics:`" in told
    assert "layernorm: tests/references/layernorm.py is missing" in told
    assert "indexer: tests/kernels/test_indexer.py is missing" in told


def test_a_hook_of_more_than_forty_lines_is_refused(house):
    text = (house / PATCH).read_text()
    head, hunk = text.split("\n@@ ", 1)
    ranges, body = hunk.split("\n", 1)
    first, rest = body.split("\n+", 1)
    start, length = ranges.split("+")[1].split(" @@")[0].split(",")
    thick = ranges.replace(f"+{start},{length}", f"+{start},{int(length) + 50}")
    (house / PATCH).write_text(f"{head}\n@@ {thick}\n{first}" + "\n+    pass" * 50 + f"\n+{rest}")
    told = lint(house).stdout
    assert "56 changed lines in sglang/srt/layers/attention/nsa/nsa_indexer.py, 40 allowed" in told


def test_a_stale_table_is_refused_and_write_renews_it(house):
    edit(house / PATCH, "Subject: ", "Subject: Another ")
    assert "README.md: a generated table is stale" in lint(house).stdout
    assert lint(house, "--write").returncode == 0
    assert "| Another " in (house / "README.md").read_text()


def test_a_number_does_not_outlive_what_it_was_measured_from(house):
    readme, measured = house / "README.md", "| `layernorm` | gfx942 | "
    report = house / "evidence/aot.gfx942.json"
    found = json.loads(report.read_text())
    modules = evidence_key.modules(path.stem for path in (house / OVERLAY).glob("*_kernel.py"))
    found["key"] = evidence_key.key("none", modules)
    report.write_text(json.dumps(found))  # as if measured now
    assert lint(house, "--write").returncode == 0
    assert f"{measured}stale |" not in readme.read_text()
    kernel = house / OVERLAY / "layernorm_kernel.py"
    kernel.write_text(kernel.read_text() + "\n# changed\n")
    assert "README.md: a generated table is stale" in lint(house).stdout
    assert lint(house, "--write").returncode == 0
    assert f"{measured}stale |" in readme.read_text()
    assert "| `write_kv` | gfx942 | stale |" not in readme.read_text()


@pytest.mark.parametrize("claim", ["in 3.5 us", "1.9x faster", "40% less", "61 faults were caught"])
def test_a_number_written_by_hand_is_refused(house, claim):
    edit(house / "README.md", "## Revert", f"It runs {claim}.\n\n## Revert")
    assert f"a number without evidence, in: It runs {claim}." in lint(house).stdout


def test_a_confidence_is_no_measurement(house):
    edit(house / "README.md", "## Revert", "It gives 95 % intervals.\n\n## Revert")
    assert lint(house).returncode == 0
