"""Catches tests on a GPU that hide the image's own packages, or add some that it cannot have."""

import shutil
from importlib import metadata

import pytest

from tests.image.layout import ROOT, VERSIONS, stub

IMAGES_PYTHON = "3.10.12"  # of Ubuntu 22.04
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


@pytest.mark.parametrize("name", ["accuracy", "tools"])
def test_what_is_added_to_an_image_can_be_installed_with_its_python(name):
    """As the packages say themselves, which this environment has in the same versions."""
    packages = pytest.importorskip("packaging.requirements")
    specifiers = pytest.importorskip("packaging.specifiers")
    wrong, found = {}, 0
    for line in (ROOT / f"ci/requirements-{name}.txt").read_text().splitlines():
        pinned = line.partition("#")[0].strip()
        if not pinned or ";" in pinned:  # with a marker, another version may be here
            continue
        asked = packages.Requirement(pinned)
        try:
            package = metadata.metadata(asked.name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"no {asked.name} here: source ci/environment.sh cpu")
        assert asked.specifier.contains(package["Version"]), pinned
        found += 1
        needs = specifiers.SpecifierSet(package["Requires-Python"] or "")
        if not needs.contains(IMAGES_PYTHON):
            wrong[pinned] = str(needs)
    assert found
    assert wrong == {}
