"""Which tests stand between a slug's faults and a release, cheapest layer first."""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.fault import OVERLAY, Fault, house_with
from tests.platform.trees import ROOT

LAYERS = ("kernels", "modules", "engine")
# Beside the slug's own file in tests/kernels.
KERNELS = {"fp8-kv-write": ["fp8_kv_write_widen"], "nsa-fp8-kv": ["nsa_fp8_kv_sparse_mla"]}
# Beside the slug's own file in tests/modules.
MODULES = {
    "layernorm": ["norm", "indexer"],
    "indexer": [],
    "nsa-fp8-kv": ["pools"],
    "rope-kv-store": ["rope"],
    "fp8-kv-write": ["pools", "backend", "qwen3"],
}


class NotJudgedError(RuntimeError):
    """pytest ran no test to its end."""


@dataclass(frozen=True)
class Verdict:
    layer: str | None  # the one that caught it
    test: str | None
    seconds: float


def tests_of(layer: str, fault: Fault) -> list[str]:
    if fault.tests:
        return [fault.tests]
    name = fault.slug.replace("-", "_")
    if layer == "kernels":  # those that run the kernel, not those that look at its machine code
        files = [f"tests/kernels/test_{each}.py" for each in (name, *KERNELS.get(fault.slug, []))]
        return [*files, "-k", f"{fault.platform}-{fault.arch}"]
    if layer == "modules":
        return [f"tests/modules/test_{each}.py" for each in (name, *MODULES[fault.slug])]
    from tests.engine.cases import CASES  # with pytest, which --help does without

    cases = " or ".join(
        name
        for name, case in CASES.items()
        if fault.slug in case.slugs and case.release == fault.release
    )
    files = ["tests/engine/test_logits.py", "tests/engine/test_launches.py"]
    return [*files, "-k", f"(patched or launches) and ({cases})"]


def layers_of(fault: Fault) -> tuple[str, ...]:
    """Kernel tests load the overlay alone; what a patch puts into upstream files is not there."""
    if fault.tests:
        return (Path(fault.tests).parent.name,)
    return LAYERS if fault.file.startswith(OVERLAY) else LAYERS[1:]


def failing_test(
    root: Path, platform: str, arch: str, tests: list[str], *options: str
) -> str | None:
    """The first of `tests` that fails in a copy of the project; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-rf"]
    command += ["--platform", platform, "--arch", arch, *options, *tests]
    # Packages that lie there are wanted, this project is not: the copy's own modules are.
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    beside = [folder for folder in path if folder and Path(folder).resolve() != ROOT]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(beside)}
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    failed = re.search(r"^FAILED (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:  # not collected, interrupted: nothing was judged
        raise NotJudgedError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return failed[1]


def judge(
    fault: Fault, layers: tuple[str, ...] | None = None, before: Verdict | None = None
) -> Verdict:
    """Run layer after layer until a test fails; `before`: what caught it last time goes first."""
    start = time.monotonic()
    caught_by = test = None
    here = fault.platform, fault.arch
    with house_with(fault) as house:
        options = ("--release", fault.release, "--patched-tree", str(house.tree))
        if before is not None and before.test is not None:
            with contextlib.suppress(NotJudgedError):  # a test of that name is there no more
                if failing_test(house.root, *here, [before.test], *options):
                    seconds = round(time.monotonic() - start, 1)
                    return dataclasses.replace(before, seconds=seconds)
        for layer in layers or layers_of(fault):
            tests = tests_of(layer, fault)
            test = failing_test(house.root, *here, tests, *options)
            if test is not None:
                caught_by = layer
                break
    return Verdict(caught_by, test, round(time.monotonic() - start, 1))


def fails_without_a_fault(tests: list[tuple[str, str, str]]) -> str | None:
    """Of (platform, architecture, test) the first that fails without a fault: it caught nothing."""
    for here in sorted({(platform, arch) for platform, arch, _ in tests}):
        chosen = sorted({test for *each, test in tests if tuple(each) == here})
        failed = failing_test(ROOT, *here, chosen)
        if failed is not None:
            return failed
    return None
