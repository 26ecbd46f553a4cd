"""Catches a speed of a kernel whose tests are red, a wrong floor, and rows of another form."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
from bench import harness, report, run, shapes, upstream  # noqa: E402
from bench.harness import Case, Ruler, Sides  # noqa: E402
from evidence import store  # noqa: E402
from tests.platform import value  # noqa: E402

GPU = value.Platform("cuda", "gfx950")
H200 = 4.3e6  # bytes in a microsecond


def case(build=lambda: Sides(lambda i: None, lambda i: None), **changes):
    told = {"work": "w", "model": "M", "tp": 4, "tokens": 8, "cache_dtype": "fp8", "bytes": 860}
    return Case(**told | changes, build=build)


@pytest.fixture
def ruler(monkeypatch):
    monkeypatch.setattr(harness, "time", lambda call: (2.5, 1.0))
    return Ruler(empty_us=0.5, bytes_per_us=430.0, flops_per_us=1000.0)


def test_a_row_has_every_column_and_null_for_a_rival_that_is_not_there(ruler):
    row = ruler.row(case())
    assert row.keys() >= set(report.COLUMNS)
    assert (row["ours_us"], row["upstream_us"], row["eager_us"]) == (2.5, 2.5, None)
    assert (row["floor_us"], row["empty_us"], row["launches"]) == (2.0, 0.5, 1.0)
    assert report.ratio(row, "floor") == 1.25
    assert report.ratio(row, "eager") is None


def test_columns_of_its_own_stand_beside_the_others(ruler):
    sides = Sides(lambda i: None, others={"torch": lambda i: None}, more={"ours_error": 0.1})
    row = ruler.row(case(lambda: sides))
    assert (row["torch_us"], row["torch_launches"], row["ours_error"]) == (2.5, 1.0, 0.1)


def test_what_products_take_stands_beside_what_bytes_take(ruler, capsys):
    row = ruler.row(case(flops=5000))
    assert (row["floor_us"], row["products_us"]) == (2.0, 5.0)
    assert ruler.row(case())["products_us"] is None
    report.show("layernorm", [row])
    heading, line = capsys.readouterr().out.splitlines()[-2:]
    assert "/ products" in heading
    assert line.split("|")[1].split() == ["1.00", "-", "1.25", "0.50", "5.00"]


@pytest.mark.parametrize(
    ("microseconds", "calls", "replays"),
    [(2, 20, 15), (900, 20, 15), (5_000, 1, 15), (50_000, 1, 6), (200_000, 1, 3)],
)
def test_a_long_call_is_repeated_less(microseconds, calls, replays):
    assert harness.repetitions(microseconds) == (calls, replays)
    assert calls * replays * microseconds <= 1_000_000


def test_evidence_is_keyed_by_the_code_of_the_kernels_and_needs_whole_rows(
    ruler, monkeypatch, tmp_path
):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    (tmp_path / "evidence").mkdir()
    row = ruler.row(case())
    path = report.write("layernorm", [row], ruler)
    assert path.name == "layernorm.Some-GPU.jsonl"
    header, rows = store.read(path)
    assert rows == [row]
    deciding = {"cases", "CALLS", "TENSOR_PARALLEL", "RELEASE", "_layernorm_kernel"}
    assert deciding < header["key"]["code"].keys()
    assert header["key"]["release"] == upstream.RELEASE
    for rows in ([{**row}], []):
        if rows:
            del rows[0]["launches"]
        with pytest.raises(ValueError, match="rows without"):
            report.write("layernorm", rows, ruler)


@pytest.fixture(scope="module")
def every_case():
    """All cases, listed in a process of its own, which the rivals' stand-ins do not leave."""
    listing = (
        "import json, sys; from bench import run, upstream; from tests.platform.value import "
        "Platform; p = Platform('cuda', 'gfx950'); upstream.install(p); "
        "print(json.dumps([[s, *c.group, c.tokens, c.bytes] "
        "for s in run.SUBJECTS for c in run.cases(s, p, False)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", listing], cwd=run.ROOT, capture_output=True, text=True, check=True
    )
    return [tuple(row) for row in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("subject", "group", "microseconds"),
    [
        ("rope-kv-store", ("rope and store", "gpt-oss-120b", 1, "bf16"), 41.2),
        ("rope-kv-store", ("rope and store", "gpt-oss-120b", 1, "fp8"), 39.3),
        ("fp8-kv-write", ("write", "MiniMax-M2.5", 4, "fp8"), 2.93),
        ("nsa-fp8-kv", ("write", "GLM-5", 1, "fp8"), 3.29),
        ("indexer", ("index K", "GLM-5", 1, "fp8"), 0.74),
        ("indexer", ("head gates", "GLM-5", 1, "bf16"), 23.6),
        ("layernorm", ("k_norm", "GLM-5", 1, "bf16"), 0.98),
    ],
)
def test_the_floor_at_8192_tokens_is_the_bytes_that_must_move(
    every_case, subject, group, microseconds
):
    found = [row[-1] for row in every_case if row[:-1] == (subject, *group, 8192)]
    assert found == [pytest.approx(microseconds * H200, rel=0.025)]


def test_every_rank_is_timed_in_the_slugs_on_its_path_at_all_sizes(every_case):
    for subject in run.SUBJECTS:
        ranks = shapes.ranks(subject.removesuffix("-sparse-mla"))
        rows = [row for row in every_case if row[0] == subject]
        works = {row[1] for row in rows if "sliding window" not in row[1]}
        assert works
        for work in works:
            timed = {(row[2], row[3], row[-2]) for row in rows if row[1] == work}
            assert timed == {(model, tp, n) for model, tp, _ in ranks for n in shapes.TOKENS}
        assert len({row[:-1] for row in rows}) == len(rows)


def test_every_form_that_servers_launch_is_timed(every_case):
    works = {(row[0], row[1]) for row in every_case}
    assert {
        ("rope-kv-store", "rope and store, scaled"),
        ("rope-kv-store", "rope and store, sliding window"),
        ("fp8-kv-write", "widen"),
        ("fp8-kv-write", "widen, scaled"),
    } <= works


RED = "def test_it(): raise AssertionError"
GREEN = "def test_it(): pass"


@pytest.mark.slow
def test_a_subject_with_red_kernel_tests_is_told_from_one_with_green(monkeypatch, tmp_path, capsys):
    kernels = tmp_path / "tests" / "kernels"
    kernels.mkdir(parents=True)
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser): parser.addoption('--platform')"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n aot: x")
    (kernels / "test_layernorm.py").write_text(RED)
    (kernels / "test_indexer.py").write_text(GREEN)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "TEST_WORKERS", 0)  # in the process itself
    assert run.run_tests(["layernorm", "indexer"], "cuda") == ["layernorm"]
    told = capsys.readouterr().out
    assert "layernorm: its kernel tests are red, so nothing of it is timed" in told
    assert "indexer: 1 passed" in told


def test_nothing_of_a_red_subject_is_timed_or_written(monkeypatch, capsys):
    def refused(*_):
        raise AssertionError("timed")

    monkeypatch.setattr(sys, "argv", ["run.py", "layernorm"])
    monkeypatch.setattr(value, "choose", lambda: "cuda")
    monkeypatch.setattr(upstream, "install", lambda platform: None)
    monkeypatch.setattr(run, "run_tests", lambda subjects, platform: subjects)
    monkeypatch.setattr(harness, "measure_ruler", refused)
    monkeypatch.setattr(report, "write", refused)
    assert run.main() == 1


def test_an_unknown_subject_or_a_missing_gpu_is_wrong_usage(monkeypatch, capsys):
    monkeypatch.setattr(value, "choose", lambda: "cpu")
    for arguments in (["sparse"], ["layernorm"], ["layernorm", "--device", "rocm"]):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        with pytest.raises(SystemExit) as refusal:
            run.main()
        assert refusal.value.code == 2
    assert "unknown: sparse; known: layernorm" in capsys.readouterr().err


def test_quick_takes_few_sizes_and_writes_nothing(ruler, monkeypatch):
    sizes = [(tp, tokens) for tp in shapes.TENSOR_PARALLEL for tokens in shapes.TOKENS]
    every = [case(tp=tp, tokens=tokens) for tp, tokens in sizes]
    timed = []

    def refused(*_):
        raise AssertionError("written")

    monkeypatch.setattr(sys, "argv", ["run.py", "layernorm", "--quick"])
    monkeypatch.setattr(value, "choose", lambda: "cuda")
    monkeypatch.setattr(upstream, "install", lambda platform: None)
    monkeypatch.setattr(run, "run_tests", lambda subjects, platform: [])
    monkeypatch.setattr(run, "compile_ahead", lambda *_: None)
    module = SimpleNamespace(cases=lambda platform: every)
    monkeypatch.setattr(run.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(harness, "measure_ruler", lambda: ruler)
    monkeypatch.setattr(report, "show", lambda subject, rows: timed.append(rows[-1]))
    monkeypatch.setattr(report, "write", refused)
    assert run.main() == 0
    chosen = [(tp, n) for tp in run.QUICK_TENSOR_PARALLEL for n in run.QUICK_TOKENS]
    assert [(row["tp"], row["tokens"]) for row in timed] == chosen


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise OSError('no libamdhip64.so')", "OSError: no libamdhip64.so"),
        ("", "AttributeError: module 'some_rival' has no attribute 'kernel'"),
    ],
)
def test_a_package_that_fails_or_lacks_the_function_is_said_and_left_out(
    monkeypatch, tmp_path, capsys, source, told
):
    (tmp_path / "some_rival.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_rival", raising=False)
    upstream.installed.cache_clear()
    for _ in range(2):
        assert upstream.installed("some_rival", "kernel") is None
    assert capsys.readouterr().out == f"some_rival.kernel is left out: {told}\n"
    assert upstream.installed("no_such_rival", "kernel") is None


@pytest.mark.slow
def test_every_side_of_every_work_runs():
    """On the emulated platform: a rival whose arguments do not fit is found without a GPU."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.once_each"],
        cwd=run.ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert "rope and store, scaled: ours, upstream, eager" in told
    assert "rope and write: ours, upstream, eager" in told
    assert "widen, scaled: ours, eager" in told
    assert "k_norm: ours, upstream, eager, torch" in told
    assert "the stand-in rotates as the operator does" in told
