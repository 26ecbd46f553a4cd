import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from ci.entry import needs, run
from evidence import key as keys
from evidence import store
from tests.faults import __doc__ as usage
from tests.faults.fault import Fault
from tests.faults.gates import LAYERS, Verdict, fails_without_a_fault, judge
from tests.faults.table import FAULTS
from tests.platform.trees import ROOT

EVIDENCE = ROOT / "evidence" / "seeded-faults.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.faults",
        description=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--slug")
    parser.add_argument("--platform", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--layer", choices=LAYERS, action="append", help="default: all of them")
    given = parser.parse_args()
    if unknown := set(given.names) - {fault.name for fault in FAULTS}:
        parser.error(f"no fault {', '.join(sorted(unknown))}")
    chosen = [
        fault
        for fault in FAULTS
        if (not given.names or fault.name in given.names)
        and given.slug in (None, fault.slug)
        and given.platform == fault.platform
    ]
    needs("torch", "triton", "pytest")
    rows = {row["fault"]: row for row in store.rows_of(EVIDENCE)}

    def judged(fault: Fault) -> Verdict:
        row = rows.get(fault.name)
        before = row and not given.layer and Verdict(row["layer"], row["test"], row["seconds"])
        return judge(fault, given.layer, before or None)

    workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    for fault, verdict in zip(chosen, workers.map(judged, chosen), strict=True):
        rows[fault.name] = {
            "fault": fault.name,
            "slug": fault.slug,
            "platform": fault.platform,
            "arch": fault.arch,
            "layer": verdict.layer,
            "caught": verdict.layer is not None,
            "seconds": verdict.seconds,
            "test": verdict.test,
            "change": fault.change,
            "digest": keys.digest_of([fault.slug]),
        }
        print(
            f"{verdict.layer or 'NOT CAUGHT':10} {verdict.seconds:6.1f} s  "
            f"{fault.slug}: {fault.name}  ({verdict.test})",
            flush=True,
        )
        if not given.layer:
            kept = [rows[fault.name] for fault in FAULTS if fault.name in rows]
            store.write(EVIDENCE, {"subject": "seeded-faults"}, kept)
    caught = [rows[fault.name] for fault in chosen if rows[fault.name]["caught"]]
    control = fails_without_a_fault([(r["platform"], r["arch"], r["test"]) for r in caught])
    if control is not None:
        print(f"{control} fails without any fault: what it caught is not shown")
        return 1
    print(f"{len(caught)} of {len(chosen)} faults caught, by tests that pass without them")
    return 0 if len(caught) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(run("tests.faults", main))
