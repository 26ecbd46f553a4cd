"""Catches: a lint that lets a malformed header, a thick hook or a stale table through."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ci.entry import Stop
from evidence import key as keys
from evidence import store
from evidence.code import merged
from patchset import series
from tests.platform.trees import pristine_tree
from tools import lint

HOUSE = Path(__file__).resolve().parents[2]
OVERLAY = keys.OVERLAY
PATCH = "patches/0.5.10.post1/layernorm.patch"


@pytest.fixture
def house(tmp_path):
    """A copy of what lint reads."""
    for folder in ("patchset", "patches", "overlay", "tools", "bench", "ci", "evidence", "docs"):
        shutil.copytree(HOUSE / folder, tmp_path / folder)
    for folder in ("references", "kernels", "engine"):
        shutil.copytree(HOUSE / "tests" / folder, tmp_path / "tests" / folder)
    for file in ("README.md", "tests/__init__.py"):
        shutil.copy(HOUSE / file, tmp_path / file)
    return tmp_path


def problems(house, write=False):
    return "\n".join(lint.problems_of(house, write))


def script(house, *arguments):
    return subprocess.run(
        [sys.executable, house / "tools/lint.py", *arguments], capture_output=True, text=True
    )


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_set_as_it_is_has_no_problems(house):
    found = lint.problems_of(house)
    assert [each for each in found if not isinstance(each, lint.Stale)] == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Numerics: ", "Numbers: ", "no trailer `Numerics:`"),
        ("Numerics: ", "Numerics: about ", "`Numerics: about "),
        ("Numerics: ulp<=1", "Numerics: ulp<=1; attention", "`Numerics: ulp<=1; attention"),
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
    assert f"{PATCH}: {problem}" in problems(house)


def test_all_problems_are_reported_in_one_go(house):
    edit(house / PATCH, "Numerics: ", "Numbers: ")
    (house / "tests/references/layernorm.py").unlink()
    (house / "tests/kernels/test_indexer.py").unlink()
    done = script(house)
    assert done.returncode == 1
    assert f"lint: {PATCH}: no trailer `Numerics:`" in done.stdout
    assert "lint: layernorm: tests/references/layernorm.py is missing" in done.stdout
    assert "lint: indexer: tests/kernels/test_indexer.py is missing" in done.stdout


def test_a_hook_of_more_than_forty_lines_is_refused(house):
    text = (house / PATCH).read_text()
    head, hunk = text.split("\n@@ ", 1)
    ranges, body = hunk.split("\n", 1)
    first, rest = body.split("\n+", 1)
    start, length = ranges.split("+")[1].split(" @@")[0].split(",")
    thick = ranges.replace(f"+{start},{length}", f"+{start},{int(length) + 50}")
    (house / PATCH).write_text(f"{head}\n@@ {thick}\n{first}" + "\n+    pass" * 50 + f"\n+{rest}")
    told = problems(house)
    assert "56 changed lines in sglang/srt/layers/attention/nsa/nsa_indexer.py, 40 allowed" in told


def test_a_stale_table_is_refused_and_write_renews_it(house):
    problems(house, write=True)
    edit(house / PATCH, "Subject: ", "Subject: Another ")
    subprocess.run([sys.executable, house / "tools/manifest.py"], check=True, capture_output=True)
    told = "README.md: a generated part is stale"
    done = script(house)
    assert (done.returncode, f"lint: warning: {told}" in done.stdout) == (0, True), done.stdout
    done = script(house, "--release")
    assert (done.returncode, f"lint: {told}" in done.stdout) == (1, True)
    done = script(house, "--write")
    assert (done.returncode, done.stdout) == (0, "")
    assert "| Another " in (house / "README.md").read_text()


def test_evidence_of_what_has_changed_is_stale_in_a_release_alone(house):
    """A contributor without that GPU can be green."""
    problems(house, write=True)
    kernel = house / OVERLAY / "layernorm_kernel.py"
    edit(kernel, "def _layernorm_kernel(", "def _layernorm_kernel(\n    other_ptr,")
    assert problems(house, write=True) == ""
    assert script(house).returncode == 0
    done = script(house, "--release")
    assert done.returncode == 1
    assert "lint: evidence/layernorm.NVIDIA-H200.jsonl is stale for layernorm" in done.stdout
    assert "python3 bench/run.py layernorm" in done.stdout


def test_a_number_does_not_outlive_what_it_was_measured_from(house):
    document, measured = house / "docs/evidence.md", "| `layernorm` | gfx942 | "
    report = house / "evidence/aot.gfx942.jsonl"
    kept = store.read(report)
    slugs = series.load(HOUSE).slugs
    key = keys.key("none", merged(*(keys.of_machine_code(slug) for slug in slugs)))
    key["versions"]["triton"] = keys.pinned("triton")
    store.write(report, kept.header | {"key": key}, kept.rows)  # as if measured now
    assert problems(house, write=True) == ""
    assert f"{measured}stale |" not in document.read_text()
    kernel = house / OVERLAY / "layernorm_kernel.py"
    kernel.write_text(kernel.read_text() + "\nCHANGED = 1\n")
    assert "docs/evidence.md: a generated part is stale" in problems(house)
    assert problems(house, write=True) == ""
    assert f"{measured}stale |" in document.read_text()
    assert "| `write_kv` | gfx942 | stale |" not in document.read_text()


@pytest.mark.parametrize("document", ["README.md", "bench/README.md", "docs/models.md"])
def test_a_block_that_nothing_generates_is_refused(house, document):
    path = house / document
    path.write_text(path.read_text() + "\n<!-- generated: mine -->1.9x faster<!-- end -->\n")
    with pytest.raises(Stop, match=f"{document}: nothing generates the block `mine`"):
        problems(house)


def test_what_a_version_takes_now_is_said_by_its_evidence(house):
    """Beside the products' time where that was counted, and no longer when it has aged."""
    row = {"work": "w", "model": "M", "tp": 1, "cache_dtype": "fp8", "eager_us": None}
    times = {"ours_us": 6.0, "upstream_us": 12.0, "floor_us": 3.0, "products_us": 4.0}
    rows = [row | times | {"tokens": tokens} for tokens in (1, 64, 8192)]
    key = keys.key("Invented GPU", keys.of_bench("layernorm"))
    store.write(house / "evidence/layernorm.Invented-GPU.jsonl", {"key": key}, rows)
    line = "| layernorm: w | M TP1 | fp8 | Invented-GPU | "
    problems(house, write=True)
    now = (house / "bench/README.md").read_text()
    assert f"{line}6.00 (12.00) | 6.00 (12.00) | 6.00 (12.00) | 2.00 | 1.50 |" in now
    overview = (house / "README.md").read_text()
    assert "2.00x the floor (2.00 to 2.00)<br>1.50x the products (1.50 to 1.50)" in overview
    harness = house / "bench/harness.py"
    harness.write_text(harness.read_text() + "\nCHANGED = 1\n")
    problems(house, write=True)
    assert f"{line}stale |" in (house / "bench/README.md").read_text()


def test_a_stale_manifest_is_a_problem_that_the_tool_mends(house):
    edit(house / OVERLAY / "layernorm.py", "\n", "\n# edited\n")
    assert "layernorm.py is not what patches/MANIFEST says: python3 tools/manifest.py" in problems(
        house
    )
    subprocess.run([sys.executable, house / "tools/manifest.py"], check=True, capture_output=True)
    assert "MANIFEST" not in problems(house)


def test_the_tables_of_published_releases_follow_the_series(house):
    table = house / "patches/published.json"
    touched = '"sglang/srt/layers/layernorm.py"'
    edit(table, '"sglang/srt/environ.py"', touched)
    edit(table, '"0.5.9"', '"0.5.8.post7"')
    edit(house / "patches/upstream.json", '"0.5.11"', '"0.5.9"')
    told = problems(house)
    assert "touches sglang/srt/layers/layernorm.py, which tells releases apart" in told
    assert "0.5.9 is not in patches/published.json; tools/published.py 0.5.9" in told
    assert "patches/upstream.json and release.json disagree about layernorm" in told


def test_the_picture_is_that_of_the_launches_on_record(house):
    path = house / "evidence/launches.jsonl"
    header, rows = store.read(path)
    (row,) = [r for r in rows if (r["case"], r["arch"]) == ("glm-5-fp8", "gfx942")]
    row["changed"]["aten::cat"] = [2, 2]
    store.write(path, header, rows)
    assert "docs/decode-step.svg: a generated part is stale" in problems(house)
    before = (house / "docs/decode-step.svg").read_text()
    problems(house, write=True)
    after = (house / "docs/decode-step.svg").read_text()
    assert (before.count(">cat<"), after.count(">cat<")) == (1, 0)


def test_known_functions_follow_the_patches_and_the_release(house):
    known = house / "patches/0.5.10.post1/functions.json"
    edit(known, '"Indexer.__init__"', '"Indexer.__int__"')
    told = "patches/0.5.10.post1/functions.json is not what the release's functions say"
    assert told not in problems(house)  # without the release nobody can tell
    (house / "build/pristine").mkdir(parents=True)
    tree = pristine_tree("0.5.10.post1")
    (house / "build/pristine/sglang-0.5.10.post1").symlink_to(tree)
    assert told in problems(house)
    edit(known, "..", "..0")
    assert "functions.json is stale for layernorm in " in problems(house)
