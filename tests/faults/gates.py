"""Which tests stand between a slug's faults and a release, cheapest layer first."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.engine.cases import CASES
from tests.faults.fault import Fault, House, house_with

LAYERS = ("kernels", "modules", "engine")
# Beside the slug's own file in tests/modules.
MODULES = {
    "layernorm": ["norm", "indexer"],
    "indexer": [],
    "nsa-fp8-kv": ["pools"],
    "rope-kv-store": ["rope"],
    "fp8-kv-write": ["pools", "backend"],
}


@dataclass(frozen=True)
class Verdict:
    layer: str | None  # the one that caught it
    test: str | None
    seconds: float


def tests_of(layer: str, slug: str) -> list[str]:
    name = slug.replace("-", "_")
    if layer == "kernels":
        return [f"tests/kernels/test_{name}.py"]
    if layer == "modules":
        return [f"tests/modules/test_{each}.py" for each in (name, *MODULES[slug])]
    cases = " or ".join(case for case in CASES if slug in CASES[case].slugs)
    return ["tests/engine/test_logits.py", "-k", f"patched and ({cases})"]


def failing_test(house: House, arch: str, tests: list[str]) -> str | None:
    """The first of `tests` that fails in the house; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-rf"]
    command += ["--platform", "cpu", "--arch", arch, "--patched-tree", str(house.tree), *tests]
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(
        command, cwd=house.root, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:  # not collected, interrupted: nothing was judged
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return failed[1]


def judge(fault: Fault, layers=LAYERS) -> Verdict:
    """Run layer after layer until a test fails."""
    start = time.monotonic()
    caught_by = test = None
    with house_with(fault) as house:
        for layer in layers:
            test = failing_test(house, fault.arch, tests_of(layer, fault.slug))
            if test is not None:
                caught_by = layer
                break
    return Verdict(caught_by, test, round(time.monotonic() - start, 1))
