"""The key of a piece of evidence: what it was made from, so that it can be told when that changed.

    {"digests": {release: digest}, "files": {path: blob}, "device": "NVIDIA H200",
     "driver": "570.1", "versions": {"torch": "2.11.0", ...}}

``files`` are the sources whose bytes decide what was measured: of what was measured, and of what
measured it. For a benchmark they are ``of_bench("layernorm")``, its file of bench/, the kernels
that it times and all that they import, so that another slug's change, or one of the slug's guards,
leaves it fresh. ``digests`` name the whole patch set as it was; they decide only where a key has no
``files``. ``versions`` decide where this repository pins what was measured: ``outdated``.
"""

import ast
import functools
import hashlib
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from patchset import series
from patchset.diff import blob_id

ROOT = Path(__file__).resolve().parents[1]
OVERLAY = f"overlay/{series.OVERLAY}"
MACHINE_CODE, HIP_SOURCE = "tests/kernels/machine_code.py", "tests/kernels/hip_source.py"
# Of ci/regression what ci/throughput.py has alone.
SPEED = ("speed", "throughput", "throughput_cli")
LAUNCHES = ("tests/engine/launches.py", "tests/engine/cases.py")
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
# Packages whose modules are followed from what imports them, and where they lie.
FOLLOWED = {
    series.OVERLAY.replace("/", "."): OVERLAY,
    "bench": "bench",
    "tests.kernels": "tests/kernels",
}


def key(device: str, files: Iterable[str]) -> dict:
    """The key of what is measured now on ``device`` from ``files``."""
    return {
        "digests": {name: release.digest for name, release in series.load(ROOT).releases.items()},
        "files": {path: blob_id((ROOT / path).read_bytes()) for path in sorted(files)},
        "device": device,
        "driver": driver(),
        "versions": {"python": platform.python_version()} | versions(),
    }


def file_name(subject: str, device: str) -> str:
    return f"{subject}.{device.replace(' ', '-')}.json"


def changed(key: dict, house: Path = ROOT, files: Iterable[str] | None = None) -> list[str]:
    """What differs now from the key's: paths, or releases where it has no files. Empty: fresh.

    ``files`` narrows the question to the paths that matter to it; one that the key does not know is
    a change too.
    """
    if "files" not in key:
        now = {name: release.digest for name, release in series.load(house).releases.items()}
        return [name for name, digest in key["digests"].items() if now.get(name) != digest]
    kept = key["files"]
    asked = sorted(kept if files is None else files)
    return [path for path in asked if kept.get(path) != _blob(house / path)]


def outdated(key: dict, package: str, house: Path = ROOT) -> list[str]:
    """That the key has another version of a package than ci/requirements*.txt pin now, if so."""
    then, now = key["versions"].get(package), pinned(package, house)
    return [] if then == now else [f"{package} {then}, now {now}"]


def pinned(package: str, house: Path = ROOT) -> str | None:
    for path in sorted(house.glob("ci/requirements*.txt")):
        if found := re.search(rf"^{re.escape(package)}==(\S+)$", path.read_text(), re.M):
            return found[1]
    return None


def sources(starts: Iterable[str], house: Path = ROOT) -> set[str]:
    """Files, there or not, and those that they import of the packages in FOLLOWED.

    A package's own __init__.py is not among them: that of the overlay says what is active and what
    the chip is called, and no kernel depends on more of it than that.
    """
    found, todo = set[str](), set(starts)
    while todo:
        path = todo.pop()
        found.add(path)
        imported = _imported((house / path).read_text()) if (house / path).is_file() else ()
        todo |= {other for other in imported if (house / other).is_file()} - found
    return found


def modules(names: Iterable[str], house: Path = ROOT) -> set[str]:
    """Overlay modules, by name, and those that they import."""
    return sources((f"{OVERLAY}/{name}.py" for name in names), house)


def of_bench(subject: str, house: Path = ROOT) -> set[str]:
    """What decides a benchmark: its rivals, shapes, floor and clock, and the kernels it times."""
    return sources([f"bench/{subject.replace('-', '_')}.py"], house)


def of_machine_code(slug: str, house: Path = ROOT) -> set[str]:
    """What decides a slug's rows of evidence/aot.*: its kernels, their calls, how they compile."""
    return _without_overlay(MACHINE_CODE, house) | modules(kernels_of(slug, house), house)


def of_hip_source(house: Path = ROOT) -> set[str]:
    """The same of evidence/tilelang.*: attention's programs, its calls, what writes its source."""
    return _without_overlay(HIP_SOURCE, house) | modules(["nsa_fp8_kv_sparse_mla"], house)


def kernels_of(slug: str, house: Path = ROOT) -> list[str]:
    folder = house / OVERLAY
    return [path.stem for path in folder.glob(f"{slug.replace('-', '_')}*_kernel.py")]


def of_launches(slugs: Iterable[str], house: Path = ROOT) -> set[str]:
    """What decides how many launches the cases of slugs have: them, and what counts."""
    return set(LAUNCHES).union(*(of_slug(slug, house) for slug in slugs))


def modules_of(slug: str, house: Path = ROOT) -> set[str]:
    """All overlay modules of a slug, guards and kernels, and those that they import."""
    every = series.load(house)
    shared = every.laid([series.SELF_REPORT])  # what no slug owns
    own = modules((Path(p).stem for p in every.laid([slug]).keys() - shared.keys()), house)
    return own | {f"{OVERLAY}/__init__.py"}


def patches_of(slug: str, house: Path = ROOT, release: str = "*") -> set[str]:
    """The slug's patch, in each release that has one if none is named."""
    found = (house / "patches").glob(f"{release}/{slug}.patch")
    return {path.relative_to(house).as_posix() for path in found}


def of_slug(slug: str, house: Path = ROOT, release: str = "*") -> set[str]:
    """All that a slug is made of: its modules, what they import, its patches."""
    return modules_of(slug, house) | patches_of(slug, house, release)


def of_served(house: Path = ROOT) -> set[str]:
    """What judges real servers, beside the slugs: ci/gsm8k.py, the toys, how these are served."""
    judges = [path for path in house.glob("ci/regression/*.py") if path.stem not in SPEED]
    toys = [house / f"tests/regression/{name}.py" for name in ("__main__", "served", "toy")]
    toys += [*house.glob("tests/regression/serving/*.py"), house / "tests/engine/checkpoints.py"]
    return {path.relative_to(house).as_posix() for path in (*judges, *toys)}


def digest_of(slugs: Iterable[str], house: Path = ROOT) -> str:
    """One short name for all that slugs are made of, where a row has no room for a key."""
    return digest(set().union(*(of_slug(slug, house) for slug in slugs)), house)


def digest(files: Iterable[str], house: Path = ROOT) -> str:
    blobs = "".join(f"{path}\0{_blob(house / path)}\n" for path in sorted(files))
    return hashlib.sha256(blobs.encode()).hexdigest()[:16]


def everything(house: Path = ROOT) -> set[str]:
    """Every patch and every overlay module."""
    found = [*house.glob("patches/*/*.patch"), *(house / OVERLAY).rglob("*.py")]
    return {path.relative_to(house).as_posix() for path in found}


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


@functools.cache  # every slug and file of evidence asks for it
def _imported(source: str) -> frozenset[str]:
    """Where the modules would lie that a module imports from the packages in FOLLOWED."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        package, _, name = node.module.rpartition(".")
        if node.module in FOLLOWED:
            found |= {f"{FOLLOWED[node.module]}/{alias.name}.py" for alias in node.names}
        elif package in FOLLOWED:
            found.add(f"{FOLLOWED[package]}/{name}.py")
    return frozenset(found)


def _without_overlay(start: str, house: Path) -> set[str]:
    return {path for path in sources([start], house) if not path.startswith(OVERLAY)}


def _blob(path: Path) -> str | None:
    return blob_id(path.read_bytes()) if path.is_file() else None
