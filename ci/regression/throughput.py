"""sglang's own bench_serving at each point, arm after arm, repeat after repeat."""

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ledger, runs, self_report, speed
from .comparison import ARMS, Comparison, say
from .decide import Decision, off_path
from .errors import RunFailed
from .servers import Arm, launched, serving, tail


@dataclass(frozen=True)
class Point:
    input: int
    output: int
    concurrency: int
    prompts: int

    @property
    def name(self) -> str:
        return f"{self.input}/{self.output} c{self.concurrency}"


def run(
    comparison: Comparison,
    points: list[Point],
    repeats: int,
    work: Path,
    result: Path | None = None,
) -> tuple[Decision, dict[str, Any]]:
    """The decision, and what a result file says beside it. Raises Refused, RunFailed."""
    asked = {**comparison.as_json(), "points": [vars(point) for point in points]}
    key = runs.begin(work, asked, result)
    say(comparison.shown())
    for arm, number in runs.missing(work, repeats):
        with runs.attempt(work, arm, number):
            _one(comparison, points, arm, number, work)
    measured = runs.kept(work)
    both = min(len(found) for found in measured.values())
    values = {
        point.name: {
            arm: {
                metric: [found["points"][point.name][metric] for found in measured[arm][:both]]
                for metric in speed.METRICS
            }
            for arm in ARMS
        }
        for point in points
    }
    decision = off_path(speed.decide(values), runs.declined(measured))
    return decision, {
        "configuration": key,
        "values": values,
        "arms": measured,
        "ledger": ledger.seal(work),
    }


def _one(comparison: Comparison, points: list[Point], arm: str, number: int, work: Path) -> None:
    side = comparison.arms[arm]
    log = work / f"{arm}-{number}.server.log"
    with serving(side, comparison.launcher, work, log, comparison.start_seconds) as url:
        how, before = comparison.check(arm, url, work)
        say(f"   {how}, at {url}")
        found = {}
        for point in points:
            found[point.name] = _bench(side, comparison, point, url, work)
            say(f"   {point.name}: {found[point.name][speed.THROUGHPUT]:.1f} output tokens/s")
        after = self_report.read(url)
    self_report.check_same(before, after, url)
    summary = {
        "server": how,
        "sglang": after.sglang,
        "report": after.patches,
        "declined": after.declined(comparison.slugs if arm == "patched" else ()),
        "points": found,
    }
    runs.keep(work, arm, number, summary)


def _bench(
    arm: Arm, comparison: Comparison, point: Point, url: str, work: Path
) -> dict[str, float]:
    """The metrics of one measurement. Raises RunFailed unless every request was completed."""
    output, log = work / "bench.jsonl", work / "bench.log"
    output.unlink(missing_ok=True)
    command = [
        # The same interpreter, tree and platform as the server's; only the module is another.
        *launched(comparison.launcher.replace("launch_server", "bench_serving"), arm.tree),
        *("--backend", "sglang", "--base-url", url, "--dataset-name", "random-ids"),
        *("--random-input-len", str(point.input), "--random-output-len", str(point.output)),
        *("--random-range-ratio", "1.0", "--num-prompts", str(point.prompts)),
        *("--max-concurrency", str(point.concurrency), "--request-rate", "inf", "--seed", "1"),
        *("--warmup-requests", str(point.concurrency), "--flush-cache"),
        *("--output-file", str(output), "--tag", arm.name),
    ]
    with open(log, "wb") as said:
        ended = subprocess.run(
            command, stdout=said, stderr=subprocess.STDOUT, env=arm.variables(), check=False
        )
    if ended.returncode or not output.exists():
        raise RunFailed(f"bench_serving ended with {ended.returncode}; {tail(log)}")
    try:
        result = json.loads(output.read_text().splitlines()[-1])
        completed = result["completed"]
        found = {metric: float(result[metric]) for metric in speed.METRICS}
    except (ValueError, LookupError, TypeError) as error:
        raise RunFailed(
            f"{output}: not what bench_serving writes: {error!r}; {tail(log)}"
        ) from None
    if completed != point.prompts:
        raise RunFailed(f"{completed} of {point.prompts} requests completed; {tail(log)}")
    if not all(math.isfinite(value) and value > 0 for value in found.values()):
        raise RunFailed(f"bench_serving measured {found}; {tail(log)}")
    return found
