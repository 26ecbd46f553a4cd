"""Ask real servers with each fault, and without one, and keep what ci/gsm8k.py makes of them.

    python3 -m tests.regression             all toys, into evidence/regression-faults.jsonl
    python3 -m tests.regression MODEL...    these; the other rows stay as they are

Exit codes: 0 patches that are right pass and every fault is a REGRESSION, 1 not so.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from ci.entry import needs, run
from evidence import key as keys
from evidence import store
from tests.faults.fault import Fault
from tests.platform.trees import ROOT
from tests.regression.served import ARCH, FAULTS, MODELS, Model, both, judge

EVIDENCE = ROOT / "evidence" / "regression-faults.jsonl"


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
        "digest": keys.digest_of(model.slugs),
        "judged_by": keys.digest(keys.of_served()),
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
    needs("torch", "transformers", "scipy", "lm_eval")
    chosen = [MODELS[name] for name in given.models or MODELS]
    again = {model.name for model in chosen}
    rows = [row for row in store.rows_of(EVIDENCE) if row["model"] not in again]
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
        store.write(EVIDENCE, {"subject": "regression-faults"}, rows)
    return 0 if all(each["verdict"] == each["expected"] for each in rows) else 1


if __name__ == "__main__":
    sys.exit(run("tests.regression", main))
