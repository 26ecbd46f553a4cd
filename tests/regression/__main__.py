"""Ask real servers with each fault, and without one, and keep what ci/gsm8k.py makes of them.

    python3 -m tests.regression             all toys, into evidence/regression-faults.json
    python3 -m tests.regression MODEL...    these; the other rows stay as they are

Exit codes: 0 patches that are right pass and every fault is a REGRESSION, 1 not so.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests import evidence_key
from tests.faults.fault import Fault
from tests.platform.trees import ROOT
from tests.regression.served import ARCH, FAULTS, MODELS, Model, both, judge

EVIDENCE = ROOT / "evidence" / "regression-faults.json"


def row(model: Model, fault: Fault | None, result: dict) -> dict:
    found = result["statistics"]
    accuracy = {arm: sum(runs) / len(runs) for arm, runs in found["accuracy"].items()}
    return {
        "model": model.name,
        "fault": fault and fault.name,
        "slugs": list(model.slugs),
        "release": model.release,
        "arch": ARCH,
        "questions": found["questions"],
        **accuracy,
        "verdict": result["verdict"],
        "expected": "REGRESSION" if fault else "PASS",
        "digest": evidence_key.digest_of(model.slugs),
        "judged_by": evidence_key.digest(evidence_key.of_served()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.regression",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    given = parser.parse_args()
    if unknown := set(given.models) - MODELS.keys():
        parser.error(f"no toy {', '.join(sorted(unknown))}")
    chosen = [MODELS[name] for name in given.models or MODELS]
    kept = json.loads(EVIDENCE.read_text()) if EVIDENCE.exists() else []
    rows = [each for each in kept if each["model"] not in {model.name for model in chosen}]
    for model in chosen:
        with tempfile.TemporaryDirectory() as work, both(model, Path(work)) as urls:
            for number, fault in enumerate((None, *FAULTS[model.name])):
                _, result = judge(model, urls, fault, Path(work, f"{number}.json"))
                rows.append(row(model, fault, result))
                print(
                    "{verdict:10} {pristine:.2f} -> {patched:.2f}  {model}: {fault}".format_map(
                        rows[-1]
                    ),
                    flush=True,
                )
        EVIDENCE.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(each["verdict"] == each["expected"] for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
