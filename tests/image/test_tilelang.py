"""Catches a TileLang whose Python and libraries are of two commits, and one rebuilt for nothing."""

import subprocess
import sys

import pytest

from tests.image import layout
from tests.image.layout import Image, tilelang_commit
from tests.tool.synthetic import git


@pytest.fixture(scope="module")
def tilelang(memory) -> Image:
    """/opt/tilelang alone, at the older commit before each test."""
    made = Image(memory / "tilelang")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", made.root / "opt/venv"], check=True
    )
    layout.tilelang(made)
    return made


@pytest.fixture(autouse=True)
def _older(tilelang):
    yield
    git("checkout", "--quiet", "--force", "--detach", "old", cwd=tilelang.tilelang)


def move(tilelang: Image, commit: str):
    return tilelang.script("move_tilelang.sh", commit, cwd=tilelang.root)


def head(tilelang: Image) -> str:
    return git("rev-parse", "HEAD", cwd=tilelang.tilelang).decode().strip()


def test_a_move_rebuilds_what_differs_and_nothing_else(tilelang):
    kept = next(tilelang.tilelang.rglob("kept.cc.o"))
    before, library = kept.stat().st_mtime_ns, tilelang.tilelang / "build/lib/libtilelang.so"
    done = move(tilelang, tilelang_commit(tilelang, "new"))
    assert done.returncode == 0, done.stderr
    assert kept.stat().st_mtime_ns == before
    program = (
        "import ctypes, sys, tilelang; library = ctypes.CDLL(sys.argv[1]);"
        "print(tilelang.__version__, library._Z5movedv(), library._Z5addedv())"
    )
    found = tilelang.run("python3", "-c", program, library, cwd=tilelang.root)
    assert found.stdout == "0.1.7.post3+rocm.gitnew 2 3\n"


def test_where_it_is_already_nothing_is_built(tilelang):
    commit = head(tilelang)
    done = move(tilelang, commit[:8])
    assert (done.returncode, done.stdout) == (0, f"TileLang is at {commit[:8]}\n")


def test_a_commit_that_does_not_build_leaves_the_checkout_where_it_was(tilelang):
    before = head(tilelang)
    done = move(tilelang, tilelang_commit(tilelang, "broken"))
    assert done.returncode == 1
    assert "this is no C++" in done.stderr
    assert "does not build" in done.stderr
    assert head(tilelang) == before


@pytest.mark.parametrize(
    ("commit", "sentence"),
    [
        ("tvm", "these submodules move: 3rdparty/tvm"),
        ("f" * 40, "cannot fetch commit ffffffff"),
        ("a55a", "name it whole, 40 digits"),
    ],
)
def test_a_commit_that_cannot_be_moved_to_is_refused_with_why(commit, sentence, tilelang):
    before = head(tilelang)
    done = move(tilelang, tilelang_commit(tilelang, commit) if commit == "tvm" else commit)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert head(tilelang) == before


def test_an_image_without_a_build_is_refused(tilelang, tmp_path):
    script = layout.ROOT / "ci/image/move_tilelang.sh"
    done = tilelang.run(script, "a" * 40, cwd=tmp_path, TILELANG=str(tmp_path))
    assert done.returncode == 1
    assert f"no TileLang build at {tmp_path}/build" in done.stderr
