"""How many kernels one decode step of each case launches, upstream and patched.

    python3 -m tests.engine.launches    into evidence/launches.jsonl

Counted on the CPU platform, where every operator, Triton launch and tensor operation is seen;
batches of three requests, two layers, no graph.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ci.entry import needs, run
from evidence import key as keys
from evidence import store
from tests.platform.trees import ROOT
from tests.platform.value import Platform

if TYPE_CHECKING:  # a case is told by pytest's marks, and --help does without pytest
    from tests.engine.cases import Case

# Beside these, operators that sglang registers in torch: what they launch is counted itself.
LAUNCH_NOTHING = {"aten::new_empty", "aten::_unsafe_view"}
EVIDENCE = ROOT / "evidence" / "launches.jsonl"


def of_a_decode_step(case: Case, arm: str, platform: Platform) -> dict[str, int]:
    """{name: launches}, the operators, kernels and tensor operations of the last forward."""
    counters = case.result(arm, platform)["launches"][-1].values()
    return {
        name: count
        for counter in counters
        for name, count in counter.items()
        if name not in LAUNCH_NOTHING and not name.startswith("sglang::")
    }


def row(name: str, arch: str) -> dict:
    from tests.engine.cases import CASES

    case, platform = CASES[name], Platform("cpu", arch)
    refused = case.upstream_refuses is not None
    pristine = {} if refused else of_a_decode_step(case, "pristine", platform)
    patched = of_a_decode_step(case, "patched", platform)
    changed = sorted(k for k in pristine | patched if pristine.get(k, 0) != patched.get(k, 0))
    return {
        "case": name,
        "release": case.release,
        "arch": arch,
        "slugs": list(case.slugs),
        "pristine": None if refused else sum(pristine.values()),
        "patched": sum(patched.values()),
        "changed": {} if refused else {k: [pristine.get(k, 0), patched.get(k, 0)] for k in changed},
    }


def table() -> list[dict]:
    from tests.engine.cases import CASES

    return [row(name, arch) for name in CASES for arch in CASES[name].archs]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.engine.launches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    needs("torch", "triton", "pytest")
    rows = table()
    slugs = {slug for each in rows for slug in each["slugs"]}
    key = keys.key("cpu", keys.of_launches(slugs))
    store.write(EVIDENCE, {"subject": "launches", "key": key}, rows)
    for each in rows:
        print(f"{each['case']:32} {each['arch']}  {each['pristine']} -> {each['patched']}")
    return 0


if __name__ == "__main__":
    sys.exit(run("launches", main))
