"""The key of a piece of evidence: what it was made from, so that it can be told when that changed.

    {"digests": {release: digest}, "code": {name: hash}, "device": "NVIDIA H200",
     "driver": "570.1", "versions": {"torch": "2.11.0", ...}}

``code`` has the definitions that decide what was measured: of what was measured, and of what
measured it (evidence/code.py). For a benchmark these are ``of_bench("layernorm")``, its file of
bench/, the clock, and the kernels that it times, so that another slug's change, or one of the
slug's guards, leaves it fresh. ``digests`` name the whole patch set as it was, for the reader.
``versions`` decide where this repository pins the compiler of what was measured: ``outdated``.
"""

import hashlib
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evidence.code import merged, reached
from patchset import series

ROOT = Path(__file__).resolve().parents[1]
OVERLAY = f"overlay/{series.OVERLAY}"
BENCH = ("bench/harness.py", "bench/upstream.py")
COMPILED = tuple(f"tests/kernels/{name}.py" for name in ("aot", "recorder", "real_calls"))
MACHINE_CODE = tuple(f"tests/kernels/machine_code.py::{name}" for name in ("table", "launches"))
HIP_SOURCE = tuple(f"tests/kernels/hip_source.py::{name}" for name in ("row", "forms"))
LAUNCHES = ("tests/engine/launches.py::table", "tests/engine/cases.py")
# Of ci/regression what ci/throughput.py has alone.
SPEED = ("speed", "throughput", "throughput_cli", "workload")
# A ROCm image's aiter is called amd-aiter, a wheel's aiter.
PACKAGES = (
    "torch",
    "triton",
    "tilelang",
    "aiter",
    "amd-aiter",
    "sgl-kernel",
    "transformers",
    "pytest",
)

Code = dict[str, str]


def key(device: str, code: Code) -> dict[str, Any]:
    """The key of what is measured now on ``device`` with ``code``."""
    return {
        "digests": {name: release.digest for name, release in series.load(ROOT).releases.items()},
        "code": code,
        "device": device,
        "driver": driver(),
        "versions": {"python": platform.python_version()} | versions(),
    }


def changed(key: Mapping[str, Any], now: Code) -> list[str]:
    """The definitions of ``now`` that the key does not know as they are. Empty: fresh."""
    kept = key.get("code", {})
    return [name for name, hashes in now.items() if not _covers(kept.get(name, ""), hashes)]


def _covers(kept: str, now: str) -> bool:
    # A key of many slugs has the definitions of one name of all of them.
    return set(now.split()) <= set(kept.split())


def outdated(key: Mapping[str, Any], package: str, house: Path = ROOT) -> list[str]:
    """That the key has another version of a package than ci/requirements*.txt pin now, if so."""
    then, now = key["versions"].get(package), pinned(package, house)
    return [] if then == now else [f"{package} {then}, now {now}"]


def pinned(package: str, house: Path = ROOT) -> str | None:
    for path in sorted(house.glob("ci/requirements*.txt")):
        if found := re.search(rf"^{re.escape(package)}==(\S+)$", path.read_text(), re.M):
            return found[1]
    return None


def digest(*codes: Code) -> str:
    """One short name for code, where a row has no room for a key."""
    return hashlib.sha256(repr([sorted(code.items()) for code in codes]).encode()).hexdigest()[:16]


# What decides each kind of evidence -------------------------------------------------------------


def of_bench(subject: str, house: Path = ROOT) -> Code:
    """What decides a benchmark: its rivals, shapes, floor and clock, and the kernels it times."""
    return reached([f"bench/{subject.replace('-', '_')}.py", *BENCH], house)


def of_machine_code(slug: str, house: Path = ROOT) -> Code:
    """What decides a slug's rows of evidence/aot.*: its kernels, their calls, how they compile."""
    kernels = reached(kernels_of(slug, house), house)
    return merged(_without_overlay([*MACHINE_CODE, *COMPILED], house), kernels)


def of_hip_source(house: Path = ROOT) -> Code:
    """The same of evidence/tilelang.*: attention's programs, its calls, what writes its source."""
    attention = reached([f"{OVERLAY}/nsa_fp8_kv_sparse_mla.py"], house)
    return merged(
        _without_overlay([*HIP_SOURCE, "tests/kernels/hip_compiler.py", *COMPILED], house),
        attention,
    )


def of_launches(slugs: Iterable[str], house: Path = ROOT, release: str = "*") -> Code:
    """What decides how many launches the cases of slugs have: them, and what counts."""
    made_of = [path for slug in slugs for path in sources_of(slug, house, release)]
    return reached([*LAUNCHES, *made_of], house)


def of_slug(slug: str, house: Path = ROOT, release: str = "*") -> Code:
    """All that a slug is made of: its modules, what they use, its patches."""
    return reached(sources_of(slug, house, release), house)


def of_tests(house: Path = ROOT) -> Code:
    """Every patch, every overlay module, and what judges real servers."""
    found = [*house.glob("patches/*/*.patch"), *(house / OVERLAY).rglob("*.py")]
    patch_set = reached([path.relative_to(house).as_posix() for path in found], house)
    return merged(patch_set, of_served(house))


def of_served(house: Path = ROOT) -> Code:
    """What judges real servers, beside the slugs: ci/gsm8k.py, the toys, how these are served."""
    judges = [path for path in house.glob("ci/regression/*.py") if path.stem not in SPEED]
    toys = [house / f"tests/regression/{name}.py" for name in ("served", "toy")]
    toys += [*house.glob("tests/regression/serving/*.py"), house / "tests/engine/checkpoints.py"]
    files = [path.relative_to(house).as_posix() for path in (*judges, *toys)]
    return reached(files, house)


def digest_of(slugs: Iterable[str], house: Path = ROOT) -> str:
    """One short name for all that slugs are made of."""
    return digest(*(of_slug(slug, house) for slug in slugs))


def kernels_of(slug: str, house: Path = ROOT) -> list[str]:
    found = (house / OVERLAY).glob(f"{slug.replace('-', '_')}*_kernel.py")
    return [path.relative_to(house).as_posix() for path in found]


def sources_of(slug: str, house: Path = ROOT, release: str = "*") -> list[str]:
    """The slug's overlay modules, and its patch in each release, or in one."""
    every = series.load(house)
    shared = every.laid([series.SELF_REPORT])  # what no slug owns
    modules = [f"overlay/{path}" for path in every.laid([slug]).keys() - shared.keys()]
    patches = (house / "patches").glob(f"{release}/{slug}.patch")
    return sorted([*modules, *(path.relative_to(house).as_posix() for path in patches)])


def _without_overlay(starts: Iterable[str], house: Path) -> Code:
    return reached(starts, house, skipped=("overlay/",))


# Where it was measured --------------------------------------------------------------------------


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def driver() -> str | None:
    """The GPU driver's version; None where there is no GPU."""
    amd = Path("/sys/module/amdgpu/version")
    if amd.is_file():
        return amd.read_text().strip()
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.splitlines()[0].strip()
