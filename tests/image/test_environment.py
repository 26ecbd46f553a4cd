"""Catches tests on a GPU that run with other packages than the image's own."""

import shutil

import pytest

from tests.image.layout import ROOT, VERSIONS, stub

# Unpacking pip takes seconds; the image has one, which the environment then sees.
WITHOUT_PIP = """case "$1 $2" in
    "-m venv") exec python3 "$@" --without-pip ;;
    *) exec python3 "$@" ;;
esac"""


@pytest.mark.slow
def test_the_environment_on_a_gpu_adds_to_the_images_packages_and_hides_none(untouched, tmp_path):
    image = untouched
    (tmp_path / "ci").mkdir()
    shutil.copy(ROOT / "ci/environment.sh", tmp_path / "ci")
    (tmp_path / "ci/requirements-tools.txt").touch()
    program = (
        "import sys, sgl_kernel, aiter; print(sys.prefix, sgl_kernel.__version__, aiter.__file__)"
    )
    command = f'source ci/environment.sh rocm && python3 -c "{program}"'
    stub(tmp_path / "bin", "python", WITHOUT_PIP)
    # Nothing is there to install; pip would ask whether all packages agree.
    given = {"PYTHON": str(tmp_path / "bin/python"), "PIP_NO_DEPS": "1"}
    done = image.run("bash", "-c", f"set -euo pipefail; {command}", cwd=tmp_path, **given)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1].split()
    assert said == [
        str(tmp_path / "build/environment-rocm"),
        VERSIONS["sgl_kernel"],
        str(image.workspace / "aiter/aiter/__init__.py"),
    ]
