"""Catches an environment that cannot be installed, is made in the wrong place or is half made; on a
GPU one that hides the image's own packages, or adds some that it cannot have."""

import fcntl
import itertools
import re
import shutil
import subprocess
import sys
import threading
from importlib import metadata

import pytest

from ci import entry, environment
from tests.image.layout import ROOT, VERSIONS

IMAGES_PYTHON = "3.10.12"  # of Ubuntu 22.04
# Unpacking pip takes seconds; the image has one, which the environment then sees.


def copy_of_what_makes_it(house):
    (house / "ci").mkdir()
    for name in ("environment.sh", "environment.py", "entry.py"):
        shutil.copy(ROOT / "ci" / name, house / "ci")
    for path in (ROOT / "ci").glob("requirements*.txt"):
        shutil.copy(path, house / "ci")
    (house / "patchset").mkdir()
    shutil.copy(ROOT / "patchset/errors.py", house / "patchset")


@pytest.mark.slow
def test_the_environment_on_a_gpu_adds_to_the_images_packages_and_hides_none(untouched, tmp_path):
    image = untouched
    copy_of_what_makes_it(tmp_path)
    for lists in (tmp_path / "ci").glob("requirements*.txt"):
        lists.write_text("")
    program = (
        "import sys, sgl_kernel, aiter; print(sys.prefix, sgl_kernel.__version__, aiter.__file__)"
    )
    command = f'source ci/environment.sh rocm && python3 -c "{program}"'
    # Nothing is there to install; pip would ask whether all packages agree.
    done = image.run("bash", "-c", f"set -euo pipefail; {command}", cwd=tmp_path)
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


# The lists -----------------------------------------------------------------------------------

OF_CPU = ("requirements", "requirements-tools", "requirements-accuracy", "requirements-build")
PIN = re.compile(r'[A-Za-z0-9._-]+==[^\s;]+(; python_version (<|>=) "3\.\d+")?')
# What packages ask for and do not get, and why that is right.
NOT_MET = {
    ("datasets", "dill"): "the newest that it names lacks Python 3.14; the one here loads GSM8K",
    ("datasets", "fsspec"): "the one here loads GSM8K",
    ("tilelang", "torch-c-dlpack-ext"): "makes a call of a GPU quicker",
    ("torch", "triton"): "the kernels are compiled with the Triton that is pinned",
    ("torch", "cuda-bindings"): "of the build for CUDA, on a GPU alone",
    ("torch", "cuda-toolkit"): "of the build for CUDA: requirements-torch-cuda.txt has its parts",
}


def test_every_package_is_pinned_exactly_and_once():
    lines = [
        line.partition("#")[0].strip()
        for name in OF_CPU
        for line in (ROOT / f"ci/{name}.txt").read_text().splitlines()
    ]
    pinned = [line for line in lines if line]
    assert [line for line in pinned if not PIN.fullmatch(line)] == []
    names = [environment.canonical(line.partition("==")[0]) for line in pinned if "<" not in line]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_the_lists_are_all_that_the_packages_need():
    """As the packages say themselves: no resolver adds what is missing."""
    requirements = pytest.importorskip("packaging.requirements")
    pinned = {name for file in OF_CPU for name in environment.pins(f"ci/{file}.txt")}
    there = {environment.canonical(d.metadata["Name"]): d for d in metadata.distributions()}
    pinned -= {"exceptiongroup", "tomli"}  # of Python 3.10
    if missing := pinned - there.keys():
        pytest.skip(f"this is not the CPU environment: no {min(missing)}")
    wrong = {}
    for name in sorted(pinned):
        for line in there[name].requires or ():
            asked = requirements.Requirement(line)
            if asked.marker and not asked.marker.evaluate({"extra": ""}):
                continue
            need = environment.canonical(asked.name)
            met = need in there and asked.specifier.contains(there[need].version, prereleases=True)
            if not met and (name, need) not in NOT_MET:
                wrong[name, need] = line
    assert wrong == {}


# How it is made ------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A checkout whose pip and venv only note what they are asked; `fails` says with what words."""
    home = tmp_path / "house"
    home.mkdir()
    copy_of_what_makes_it(home)
    monkeypatch.setattr(environment, "HOUSE", home)
    monkeypatch.setattr(environment, "BUILD", home / "build")
    monkeypatch.setattr(environment.Environment, "uninstall_others", lambda self: None)
    return Checkout(home, monkeypatch)


class Checkout:
    def __init__(self, home, monkeypatch):
        self.home, self.calls, self.fails = home, [], {}

        def call(made, *command):
            self.calls.append(" ".join(map(str, command)))
            for words, said in self.fails.items():
                if words in self.calls[-1]:
                    if isinstance(said, BaseException):
                        raise said
                    with made.log.open("a") as log:
                        log.write(said)
                    return 1
            for after, folder in itertools.pairwise(command):
                if after in ("venv", "--target"):
                    (home / folder).mkdir(parents=True)
            return 0

        monkeypatch.setattr(environment.Environment, "call", call)
        monkeypatch.setattr(environment, "PYTHONS", {"cpu": (sys.version_info[:2],) * 2})

    def make(self):
        self.calls.clear()
        return environment.Environment("cpu", accuracy=False).made()

    @property
    def stamp(self):
        return self.home / "build/environment-cpu/stamp"


NO_CPU_BUILD = {"+cpu": "ERROR: No matching distribution found for torch==2.13.0+cpu\n"}
NO_NETWORK = "WARNING: Retrying after NewConnectionError\nERROR: No matching distribution found\n"


def test_nothing_of_cuda_is_asked_for_where_a_cpu_build_is(house, capsys):
    assert house.make() == house.stamp.parent
    assert not any("torch-cuda" in call or "nvidia" in call for call in house.calls)
    assert "GB to download" in capsys.readouterr().err
    assert all("--no-deps" in call for call in house.calls if " pip " in call)
    assert house.make()
    assert house.calls == []  # it is there


def test_the_build_for_cuda_is_said_with_its_size_before_it_is_asked_for(house, capsys):
    house.fails |= NO_CPU_BUILD
    house.make()
    assert any("requirements-torch-cuda.txt" in call for call in house.calls)
    assert "2.1 GB more to download" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ({"+cpu": NO_NETWORK}, "index cannot be reached"),
        ({"-r ": "OSError: [Errno 28] No space left on device\n"}, "the disk is full"),
        (
            {"-r ": "ERROR: No matching distribution found for x==1\n"},
            "distribution found for x==1",
        ),
        ({"-m venv": "ERROR: no ensurepip\n"}, "no ensurepip"),
    ],
)
def test_what_cannot_be_made_is_a_sentence_and_the_next_call_makes_it(fails, said, house):
    house.fails |= fails
    with pytest.raises(entry.Stop, match=re.escape(said)) as stop:
        house.make()
    assert stop.value.code == entry.FAILED
    assert not house.stamp.exists()
    house.fails.clear()
    house.make()
    assert house.stamp.exists()


def test_an_interrupted_one_is_made_anew(house):
    house.fails["-r "] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        house.make()
    assert not house.stamp.exists()
    half = house.stamp.with_name("half a package")
    half.touch()
    house.fails.clear()
    house.make()
    assert not half.exists()


def test_changed_lists_are_added_and_an_interruption_there_is_seen_too(house):
    house.make()
    with (house.home / "ci/requirements-tools.txt").open("a") as lists:
        lists.write("another==1.0\n")
    house.fails["-r "] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        house.make()
    assert not any(" venv " in call or "+cpu" in call for call in house.calls)
    house.fails.clear()
    house.make()
    assert any(" venv " in call for call in house.calls)


def test_the_environment_of_another_checkout_is_used_and_never_changed(house, tmp_path):
    house.make()
    theirs = tmp_path / "theirs"
    house.stamp.parent.rename(theirs)
    house.stamp.parent.symlink_to(theirs)
    house.make()
    assert house.calls == []
    with (house.home / "ci/requirements-tools.txt").open("a") as lists:
        lists.write("another==1.0\n")
    kept = (theirs / "stamp").read_text()
    house.make()
    assert not house.stamp.parent.is_symlink()
    assert (theirs / "stamp").read_text() == kept


@pytest.mark.parametrize("lacking", ["python", "space"])
def test_what_is_missing_is_said_before_anything_is_asked_of_pip(lacking, house, monkeypatch):
    if lacking == "python":
        monkeypatch.setattr(environment, "PYTHONS", {"cpu": ((3, 99), (3, 99))})
    else:
        monkeypatch.setattr(environment, "SIZES", {"cpu": (1.0, 1e9)})
    said = {"python": "needs Python 3.99 to 3.99, this is", "space": "GB free, 1000000000.0 are"}
    with pytest.raises(entry.Stop, match=said[lacking]):
        house.make()
    assert house.calls == []


def test_two_at_once_make_one(house, capsys):
    build = house.home / "build"
    build.mkdir()
    with (build / "environment-cpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=house.make)
        second.start()
        second.join(timeout=1)
        assert second.is_alive()
        assert house.calls == []
    second.join()
    assert house.stamp.exists()
    assert "waiting for another command" in capsys.readouterr().err


def sourced(house, tmp_path, *words, **given):
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    command = f'source "{house.home}/ci/environment.sh" {" ".join(words)}; echo "$? $VIRTUAL_ENV"'
    environ = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable} | given
    return subprocess.run(
        ["bash", "-c", command], cwd=tmp_path / "elsewhere", env=environ, capture_output=True,
        text=True,
    )  # fmt: skip


def test_it_lies_in_its_checkout_wherever_it_is_sourced_from(house, tmp_path):
    house.make()
    done = sourced(house, tmp_path, "cpu")
    assert done.stdout.strip() == f"0 {house.stamp.parent}", done.stderr
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        ((), {}, "required: platform"),
        (("tpu",), {}, "invalid choice: 'tpu'"),
        (("cpu",), {"PYTHON": "/no/python"}, "'/no/python' is no Python 3.10 or newer"),
    ],
)
def test_a_shell_that_sources_it_in_vain_lives_on(words, given, said, house, tmp_path):
    done = sourced(house, tmp_path, *words, **given)
    assert done.stdout.strip() == "2"
    assert said in done.stderr
