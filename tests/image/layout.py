"""A directory laid out as a released ROCm image, and rocm.Dockerfile built on it without docker.

/sgl-workspace/sglang   a checkout at the release's tag: detached, dirty (pyproject.toml replaced,
                        MI300X_VF configurations and _version.py untracked), installed editable
/sgl-workspace/aiter    a checkout, installed editable by the import hook of PEP 660
/opt/venv               its Python; sgl_kernel is there in name alone, torch, triton and what sglang
                        imports are this environment's, under the versions of the image
/opt/tilelang           a checkout with its CMake build, used where it lies
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.platform.trees import ROOT, pristine_tree
from tests.tool.synthetic import git

VERSIONS = {
    "torch": "2.9.1+rocm7.2.0",
    "triton": "3.5.1+rocm7.2.0",
    "sgl_kernel": "0.4.0",
}
AITER = """
from setuptools import setup
setup(
    name="amd-aiter",
    version="0.1.11.post1",
    packages=["aiter", "aiter_meta"],
    package_dir={"aiter_meta": "meta"},
)
"""
CMAKE = """
cmake_minimum_required(VERSION 3.22)
project(TILE_LANG CXX)
option(USE_ROCM "" OFF)
file(GLOB SOURCES src/*.cc)
add_library(tilelang SHARED ${SOURCES})
set_target_properties(tilelang PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
if(NOT USE_ROCM)
  message(FATAL_ERROR "the options of the image's build are lost")
endif()
"""
DIGEST = "sha256:" + "5" * 64  # of the released images' tags
TVM = "34fac3091232a90d4e8b376aa25e1599a0ac189a"


class Image(NamedTuple):
    root: Path

    @property
    def workspace(self) -> Path:
        return self.root / "sgl-workspace"

    @property
    def tree(self) -> Path:
        return self.workspace / "sglang/python/sglang"

    @property
    def tilelang(self) -> Path:
        return self.root / "opt/tilelang"

    @property
    def site(self) -> Path:
        return next((self.root / "opt/venv/lib").glob("python3*/site-packages"))

    def run(self, *command: object, cwd: Path | None = None, **environment: str):
        """As docker starts a command: no login shell, nothing of this machine's environment."""
        inside = {
            "PATH": f"{self.root / 'opt/venv/bin'}:/usr/bin:/bin",
            "HOME": "/nonexistent",
            "WORKSPACE": str(self.workspace),
            "TILELANG": str(self.tilelang),
        }
        return subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.workspace,
            env=inside | environment,
            capture_output=True,
            text=True,
        )

    def script(self, name: str, *arguments: object, **environment: str):
        return self.run(ROOT / "ci/image" / name, *arguments, **environment)

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and not {"__pycache__", ".git"} & set(path.parts)
        }


def image(root: Path, release: str) -> Image:
    made = Image(root)
    venv = root / "opt/venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    for name, version in VERSIONS.items():
        _metadata(made.site, name, version)
    _write(made.site / "sgl_kernel/__init__.py", f"__version__ = {VERSIONS['sgl_kernel']!r}\n")
    # sglang imports it for notebooks; in this environment it is not.
    _write(made.site / "IPython/__init__.py", "")
    _write(made.site / "IPython/display.py", "HTML = display = None\n")
    # Read after the image's own .pth files, so what these name comes first.
    _write(made.site / "zz_environment.pth", f"{sysconfig.get_path('purelib')}\n")
    _sglang(made, release)
    _aiter(made)
    tilelang(made)
    return made


def _sglang(made: Image, release: str) -> None:
    checkout = made.workspace / "sglang"
    generated = shutil.ignore_patterns("__pycache__", "_version.py")
    shutil.copytree(pristine_tree(release) / "sglang", made.tree, ignore=generated)
    project = checkout / "python/pyproject.toml"
    _write(project, '[project]\nname = "sglang"\ndependencies = ["nvidia-everything"]\n')
    _write(checkout / "sgl-kernel/setup_rocm.py", "")
    git("init", "--quiet", cwd=checkout)
    git("-c", "core.looseCompression=0", "add", "--all", cwd=checkout)  # in a third of the time
    git("commit", "--quiet", "--message", "release", cwd=checkout)
    git("tag", f"v{release}", cwd=checkout)
    git("checkout", "--quiet", "--detach", cwd=checkout)
    _write(project, '[project]\nname = "amd-sglang"\n')
    _write(made.tree / "_version.py", "__version__ = version = '0.0.0.dev1+gbaadf00d'\n")
    for path in sorted(made.tree.rglob("*MI300X*.json")):
        shutil.copy(path, path.with_name(path.name.replace("MI300X", "MI300X_VF")))
    hook = f"import sys\nMAPPING: dict[str, str] = {{'sglang': {str(made.tree)!r}}}\n" + PATH_HOOK
    _write(made.site / "__editable___sglang_0_0_0_finder.py", hook)
    line = "import __editable___sglang_0_0_0_finder as f; f.install()\n"
    _write(made.site / "__editable__.sglang-0.0.0.pth", line)
    _metadata(made.site, "amd-sglang", "0.0.0.dev1+gbaadf00d")


# What setuptools writes, at the same place: after the path finder.
PATH_HOOK = """
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location

class _Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in MAPPING:
            folder = MAPPING[name]
            return spec_from_file_location(
                name, folder + "/__init__.py", submodule_search_locations=[folder]
            )

def install():
    sys.meta_path.append(_Finder)
"""


def _aiter(made: Image) -> None:
    """Installed by setuptools itself, as `pip install --editable .` does it."""
    checkout = made.workspace / "aiter"
    _write(checkout / "setup.py", AITER)
    _write(checkout / "aiter/__init__.py", "def dynamic_per_tensor_quant(): ...\n")
    _write(checkout / "meta/__init__.py", "")
    wheels = made.root / "wheels"
    wheels.mkdir()
    program = (
        "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, wheels], cwd=checkout, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(made.site)
    shutil.rmtree(wheels)


def give_sources(made: Image) -> None:
    """Sources that the Dockerfile's target `source` builds: each notes the chip that it is told."""
    chips = {"sglang/sgl-kernel/setup_rocm.py": "AMDGPU_TARGET", "aiter/setup.py": "GPU_ARCHS"}
    for path, variable in chips.items():
        source = made.workspace / path
        note = f"import os; open('built', 'w').write(os.environ[{variable!r}])\n"
        source.write_text(note + source.read_text())


def tilelang(made: Image) -> None:
    """The checkout at the older of two commits; a clone of `origin`, which has both and a third."""
    origin = made.root / "origin"
    _write(origin / "CMakeLists.txt", CMAKE)
    _write(origin / "pyproject.toml", 'dependencies = ["torch"]\n')
    _write(origin / ".gitignore", "/build/\n")
    _write(origin / "tilelang/__init__.py", "__version__ = '0.1.7.post3+rocm.gitold'\n")
    _write(origin / "src/kept.cc", "int kept() { return 1; }\n")
    _write(origin / "src/moved.cc", "int moved() { return 1; }\n")
    git("init", "--quiet", "--initial-branch=main", cwd=origin)
    _commit(origin, "old", TVM)
    git("clone", "--quiet", str(origin), str(made.tilelang), cwd=origin)
    _write(origin / "src/moved.cc", "int moved() { return 2; }\n")
    _write(origin / "src/added.cc", "int added() { return 3; }\n")
    _write(origin / "tilelang/__init__.py", "__version__ = '0.1.7.post3+rocm.gitnew'\n")
    _commit(origin, "new", TVM)
    _write(origin / "src/moved.cc", "this is no C++\n")
    _commit(origin, "broken", TVM)
    _commit(origin, "tvm", TVM[::-1])
    for step in (("-S", ".", "-B", "build", "-G", "Ninja", "-DUSE_ROCM=ON"), ("--build", "build")):
        done = subprocess.run(["cmake", *step], cwd=made.tilelang, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
    _write(made.tilelang / "pyproject.toml", "dependencies = []\n")  # the image's build edits it
    _write(made.site / "tilelang.pth", f"{made.tilelang}\n")
    _metadata(made.site, "tilelang", "0.1.7.post3+rocm.gitold")


def tilelang_commit(made: Image, tag: str) -> str:
    return git("rev-parse", tag, cwd=made.root / "origin").decode().strip()


def _commit(origin: Path, tag: str, tvm: str) -> None:
    git("add", "--all", cwd=origin)
    git("update-index", "--add", "--cacheinfo", f"160000,{tvm},3rdparty/tvm", cwd=origin)
    git("commit", "--quiet", "--message", tag, cwd=origin)
    git("tag", tag, cwd=origin)


def _metadata(site: Path, name: str, version: str) -> None:
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    _write(site / f"{name}-{version}.dist-info/METADATA", text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# rocm.Dockerfile ------------------------------------------------------------------------------


class Built(NamedTuple):
    labels: dict[str, str]
    returncode: int  # of the last step
    stderr: str


def build(made: Image, arguments: dict[str, str], target: str, **environment: str) -> Built:
    """Do what the Dockerfile's instructions say, with `made` as BASE; unknown ones raise."""
    global_arguments: set[str] = set()
    stages: dict[str, list[tuple[str, str]]] = {}
    stage: list[tuple[str, str]] | None = None
    for word, rest in instructions((ROOT / "rocm.Dockerfile").read_text()):
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            stage = stages[name] = list(stages.get(parent, []))
        elif stage is None:
            assert word == "ARG", word
            global_arguments.add(rest)
        else:
            stage.append((word, rest))
    assert global_arguments == {"BASE"}
    declared, labels = {"PATH": f"{made.root / 'opt/venv/bin'}:/usr/bin:/bin"}, {}
    cwd = made.root
    for word, rest in stages[target]:
        if word == "ARG":
            declared[rest] = arguments[rest]
        elif word == "LABEL":
            for pair in rest.split(" org."):
                key, _, value = pair.strip().removeprefix("org.").partition("=")
                said = made.run("sh", "-c", f"printf %s {value}", **declared).stdout
                labels[f"org.{key}"] = said
        elif word == "COPY":
            *sources, to = rest.split()
            for source in sources:
                _copy(ROOT / source, made.root / to.strip("/"), many=len(sources) > 1)
        elif word == "WORKDIR":
            cwd = made.root / rest.strip("/")
        elif word == "RUN":
            cwd.mkdir(exist_ok=True)  # docker makes it
            command = rest.replace("/opt/rocm-patches/", f"{made.root}/opt/rocm-patches/")
            done = made.run("sh", "-c", command, cwd=cwd, **declared, **environment)
            if done.returncode:
                return Built(labels, done.returncode, done.stderr)
        else:
            raise ValueError(f"rocm.Dockerfile has {word}, which its tests do not know")
    return Built(labels, 0, "")


def instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


def _copy(source: Path, to: Path, many: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        to = to / source.name if many else to
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, to)


# Every name that is asked for is there; called as a decorator, it gives the function back.
TORCH_IN_NAME = """
class version: hip = None

class Name(type):
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return Name(name, (), {})
    def __call__(self, *given, **_):
        return given[0] if given else self

def __getattr__(name): return Name(name, (), {})
"""


def light(folder: Path) -> dict[str, str]:
    """torch and triton in name alone, as real ones take seconds to import: for what is not about
    them. That an image imports real ones is shown by the first build of each release."""
    for name, text in {"torch": TORCH_IN_NAME, "triton": ""}.items():
        _write(folder / name / "__init__.py", text)
    return {"PYTHONPATH": str(folder)}


def stub(folder: Path, name: str, text: str) -> dict[str, str]:
    """A program of that name first on PATH."""
    folder.mkdir(exist_ok=True)
    _write(folder / name, f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def build_arguments(release: str, slugs: Sequence[str] = ()) -> dict[str, str]:
    """What ci/image/build.py passes to the container engine."""
    base = f"lmsysorg/sglang:v{release}-rocm720-mi35x@{DIGEST}"
    command = [ROOT / "ci/image/build.py", "--release", release, "--arch", "gfx950"]
    command += ["--rocm", "7.2", "--base", base, "--print"]
    for slug in slugs:
        command += ["--slug", slug]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout)
    pairs = [words[i + 1] for i, word in enumerate(words) if word == "--build-arg"]
    return dict(pair.split("=", 1) for pair in pairs)
