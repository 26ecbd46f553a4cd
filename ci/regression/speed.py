"""Ratios patched : pristine of repeated measurements, and what they allow to be said.

A repeat measures both arms next to each other, so a ratio is formed within a repeat: what drifts
over the day cancels. The interval is Student's over the logarithms of the ratios. Nothing is said
of a difference below the noise: NOISE, or twice the spread of the pristine arm where that is more.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

from scipy import stats

from .decide import Decision
from .errors import Refused
from .plan import ALPHA, holm
from .workload import FEWEST_REPEATS

NOISE = 0.02  # what servers of one build differ by from day to day
MARGIN = 0.03  # the slow-down that a PASS excludes
THROUGHPUT = "output_throughput"
# Of sglang.bench_serving; whether more of it is better.
METRICS = {THROUGHPUT: True, "median_tpot_ms": False, "median_ttft_ms": False}


@dataclass(frozen=True)
class Ratio:
    """Of one metric at one point; as a speed, so that above 1 is faster whatever the metric."""

    median: float
    low: float  # 95 % interval of the mean ratio
    high: float
    slower_p: float  # one-sided
    lower_bound: float  # one-sided 95 %
    noise: float
    says: str  # "faster", "slower" or "below the noise"


def ratio(pristine: Sequence[float], patched: Sequence[float], more_is_better: bool) -> Ratio:
    """Raises Refused for too few repeats or values that are no measurement."""
    n = len(pristine)
    if n != len(patched) or n < FEWEST_REPEATS:
        raise Refused(
            f"{n} and {len(patched)} repeats; {FEWEST_REPEATS} or more of both are needed"
        )
    if not all(math.isfinite(v) and v > 0 for v in (*pristine, *patched)):
        raise Refused(f"no measurement: {pristine}, {patched}")
    logs = [math.log(b / a) * (1 if more_is_better else -1)
            for a, b in zip(pristine, patched, strict=True)]  # fmt: skip
    mean, error = fmean(logs), max(stdev(logs) / math.sqrt(n), 1e-12)
    reach = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * error
    found = math.exp(median(logs))
    low, high = math.exp(mean - reach), math.exp(mean + reach)
    noise = max(NOISE, 2 * stdev(pristine) / fmean(pristine))
    says = "below the noise"
    if abs(found - 1) > noise and not low <= 1 <= high:
        says = "faster" if found > 1 else "slower"
    return Ratio(
        found,
        low,
        high,
        float(stats.t.cdf(mean / error, n - 1)),
        math.exp(mean - float(stats.t.ppf(1 - ALPHA, n - 1)) * error),
        noise,
        says,
    )


def decide(points: dict[str, dict[str, dict[str, list[float]]]]) -> Decision:
    """`points`: {point: {arm: {metric: [one value a repeat]}}}. The verdict is on throughput."""
    if not points:
        raise Refused("no point was measured")
    ratios = {
        point: {
            metric: ratio(arms["pristine"][metric], arms["patched"][metric], better)
            for metric, better in METRICS.items()
        }
        for point, arms in points.items()
    }
    throughput = {point: each[THROUGHPUT] for point, each in ratios.items()}
    adjusted = dict(zip(throughput, holm([r.slower_p for r in throughput.values()]), strict=True))
    slower = [p for p, r in throughput.items() if r.says == "slower" and adjusted[p] < ALPHA]
    unsettled = [p for p, r in throughput.items() if r.lower_bound <= 1 - MARGIN]
    statistics: dict[str, Any] = {
        "points": {
            point: {metric: asdict(r) for metric, r in each.items()}
            for point, each in ratios.items()
        },
        "slower_p_holm": adjusted,
    }
    if slower:
        named = [f"{p}: {throughput[p].median:.3f}x" for p in slower]
        return Decision("REGRESSION", f"slower at {', '.join(named)}", named, None, statistics)
    if unsettled:
        further = max(_further(points[p]) for p in unsettled)
        message = (
            f"a slow-down of {MARGIN:.0%} cannot be excluded at {', '.join(unsettled)}; about "
            f"{further} further repeats would settle it"
        )
        return Decision("INCONCLUSIVE", message, unsettled, further, statistics)
    faster = [f"{p} {r.median:.3f}x" for p, r in throughput.items() if r.says == "faster"]
    message = f"no slow-down of {MARGIN:.0%} at any point"
    message += f"; faster: {', '.join(faster)}" if faster else "; no gain above the noise"
    return Decision("PASS", message, [], None, statistics)


def _further(arms: dict[str, dict[str, list[float]]]) -> int:
    """Repeats until the interval is as narrow as the margin, if nothing is slower."""
    before, after = arms["pristine"][THROUGHPUT], arms["patched"][THROUGHPUT]
    spread = stdev(math.log(b / a) for a, b in zip(before, after, strict=True))
    z = float(stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(0.8))
    return max(math.ceil((z * spread / MARGIN) ** 2) - len(before), 1)
