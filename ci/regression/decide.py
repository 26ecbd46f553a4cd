"""The verdict over saved runs of both arms: pairing and statistics, nothing else.

Every question is paired with itself. With several runs an arm, a question's score in an arm is its
mean over that arm's runs: noise shrinks, and the question stays the unit. Sources: E. Miller,
"Adding Error Bars to Evals" (arXiv 2411.00640: paired differences, power); A. Dutta et al.,
"Accuracy is Not All You Need" (arXiv 2407.09141: flips); Q. McNemar (1947), S. Holm (1979).

REGRESSION    more questions lost than gained than chance explains (exact one-sided McNemar), or
              clearly more answers that cannot be read or are cut off
PASS          no REGRESSION; the one-sided 95 % lower bound of the paired difference is above
              -margin; no more flips than noise and an allowance explain
INCONCLUSIVE  neither; says how many further runs an arm would settle it
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy import stats

from .errors import Refused
from .questions import Run, same_questions

ALPHA = 0.05
POWER = 0.80
# Two runs of the same server differ in a share of the questions. Up to QUIET of them 1 point can be
# resolved in one pass over GSM8K; a noisier server gets the wider margin, and more runs.
QUIET, MARGIN, NOISY_MARGIN = 0.02, 0.01, 0.015
RATE_ALLOWANCE = 0.01  # invalid or cut-off answers above the pristine arm's
# Right in the pristine arm, wrong in the patched one, above what pristine runs lose to each other:
# not their difference with what is gained, which a patch that answers otherwise may hide.
FLIP_ALLOWANCE = 0.01
FLOOR = 0.10  # a pristine arm below this answers nothing that could be lost
FEW = 10  # discordant questions below which the normal approximation is not used


@dataclass
class Decision:
    verdict: str
    message: str
    reasons: list[str]
    further_runs: int | None
    statistics: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """Differences patched - pristine of the questions' scores, summarised."""

    questions: int
    losses: int  # questions whose score fell
    gains: int
    lost: float  # the sum of the falls, in questions
    mean: float
    deviation: float  # sample standard deviation of one question's difference

    @property
    def lower_bound(self) -> float:
        return lower_bound(self.questions, self.losses + self.gains, self.lost, self.mean,
                           self.deviation)  # fmt: skip

    @property
    def mcnemar(self) -> float:
        return mcnemar(self.losses, self.gains)


def lower_bound(n: int, discordant: int, lost: float, mean: float, deviation: float) -> float:
    """One-sided 95 % lower bound of the mean difference.

    Student's t; with fewer than FEW discordant questions, where a variance says nothing, exact: the
    Clopper-Pearson upper bound of the share lost, no gain set against it (none of n: 1 - 0.05^1/n).
    """
    if discordant < FEW:
        lost_up = min(math.ceil(lost), n)
        if lost_up == n:
            return -1.0
        return -float(stats.beta.ppf(1 - ALPHA, lost_up + 1, n - lost_up))
    return mean - float(stats.t.ppf(1 - ALPHA, n - 1)) * deviation / math.sqrt(n)


def mcnemar(losses: int, gains: int) -> float:
    """Exact one-sided p: this many losses or more among the discordant, were both as likely."""
    if losses + gains == 0:
        return 1.0
    return float(stats.binomtest(losses, losses + gains, 0.5, alternative="greater").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def paired(pristine: Sequence[dict[str, bool]], patched: Sequence[dict[str, bool]]) -> Paired:
    """Differences of mean scores. Integers until the end: thirds that cancel must cancel."""
    a, b = len(pristine), len(patched)
    scaled = [
        sum(run[doc] for run in patched) * a - sum(run[doc] for run in pristine) * b
        for doc in pristine[0]
    ]
    n, unit = len(scaled), a * b
    mean = sum(scaled) / n / unit
    squares = sum((each / unit - mean) ** 2 for each in scaled)
    return Paired(
        n,
        sum(each < 0 for each in scaled),
        sum(each > 0 for each in scaled),
        -sum(each for each in scaled if each < 0) / unit,
        mean,
        math.sqrt(squares / (n - 1)) if n > 1 else 0.0,
    )


def discordance(pairs: Sequence[tuple[Run, Run]]) -> dict[str, float] | None:
    """For each question the share of the pairs of runs that differ in it; None without a pair."""
    if not pairs:
        return None
    return {
        doc: sum(one.correct[doc] != other.correct[doc] for one, other in pairs) / len(pairs)
        for doc in pairs[0][0].correct
    }


def runs_needed(share: float, questions: int, margin: float) -> int:
    """Runs an arm for POWER to show non-inferiority where nothing is lost, or a loss of `margin`.

    `share` of discordant questions: n = share ((z.95 + z.80) / margin)^2 answers an arm.
    """
    z = float(stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(POWER))
    exact = math.log(ALPHA) / math.log1p(-margin)  # with no discordance at all
    return math.ceil(max(share * (z / margin) ** 2, exact) / questions)


def decide(
    pristine: Sequence[Run],
    patched: Sequence[Run],
    *,
    margin: float | None = None,
    floor: float = FLOOR,
) -> Decision:
    """Raises Refused where the runs cannot be paired."""
    if not pristine or not patched:
        raise Refused("at least one run of each arm is needed: --pristine F --patched F")
    same_questions([*pristine, *patched])
    difference = paired([r.correct for r in pristine], [r.correct for r in patched])
    n = difference.questions
    noise = discordance(list(itertools.combinations(pristine, 2)))
    flips = discordance(list(itertools.product(pristine, patched)))
    assert flips is not None
    a_a = sum(noise.values()) / n if noise is not None else None
    flipped = sum(flips.values()) / n
    if margin is None:
        margin = MARGIN if a_a is None or a_a <= QUIET else NOISY_MARGIN
    p = difference.mcnemar
    statistics: dict[str, Any] = {
        "questions": n,
        "runs": {"pristine": len(pristine), "patched": len(patched)},
        "accuracy": {
            "pristine": [round(run.accuracy, 6) for run in pristine],
            "patched": [round(run.accuracy, 6) for run in patched],
        },
        "difference": difference.mean,
        "lower_bound": difference.lower_bound,
        "margin": margin,
        "losses": difference.losses,
        "gains": difference.gains,
        "mcnemar_p": p,
        "flips": {"pristine_pristine": a_a, "patched_pristine": flipped},
    }
    bad: list[str] = []
    open_questions: list[str] = []
    if p < ALPHA:
        bad.append(
            f"{difference.losses} questions lost, {difference.gains} gained: by chance in "
            f"{p:.2g} of cases (exact one-sided McNemar, below {ALPHA})"
        )
    for name in ("invalid", "truncated"):
        found = _rate(name, pristine, patched)
        statistics[name] = found and {k: found[k] for k in ("pristine", "patched", "p")}
        if found is None or found["patched"] - found["pristine"] <= RATE_ALLOWANCE:
            continue
        sentence = (
            f"{name} answers: {found['patched']:.2%} patched, {found['pristine']:.2%} pristine, "
            f"more than {RATE_ALLOWANCE:.0%} above"
        )
        (bad if found["p"] < ALPHA else open_questions).append(sentence)
    if difference.lower_bound <= -margin:
        open_questions.append(
            f"a loss of {-difference.lower_bound:.2%} cannot be excluded, the margin is "
            f"{margin:.1%}"
        )
    if noise is None:
        open_questions.append(
            "one pristine run alone: its own noise is not known, so nothing can pass; a second "
            "pristine run is needed"
        )
    elif _excess_of_flips(pristine, patched, noise) > FLIP_ALLOWANCE:
        open_questions.append(
            f"{flipped:.2%} of the questions flip between the arms, {a_a:.2%} between pristine "
            "runs: more than noise; look at the flipped questions, further runs will not settle it"
        )
    score = sum(run.accuracy for run in pristine) / len(pristine)
    if score < floor:
        open_questions.append(
            f"the pristine arm answers {score:.2%}, below the floor of {floor:.0%}: this setting "
            "does not work even without the patches, so a comparison says nothing"
        )
    if bad:
        return Decision("REGRESSION", "; ".join(bad), bad + open_questions, None, statistics)
    if not open_questions:
        message = (
            f"no loss above {margin:.1%}: difference {difference.mean:+.2%}, lower bound "
            f"{difference.lower_bound:+.2%} over {n} questions"
        )
        return Decision("PASS", message, [], None, statistics)
    needed = runs_needed(max(flipped, a_a or 0.0), n, margin)
    further = max(needed - min(len(pristine), len(patched)), 1)
    message = (
        f"{'; '.join(open_questions)}. {further} further runs of each arm would settle it with a "
        f"power of {POWER:.0%}: keep all runs, add these, decide once more"
    )
    return Decision("INCONCLUSIVE", message, open_questions, further, statistics)


def _rate(name: str, pristine: Sequence[Run], patched: Sequence[Run]) -> dict[str, float] | None:
    """Share of invalid or truncated answers in both arms; None where a log does not tell."""
    arms = []
    for runs in (pristine, patched):
        told = [getattr(run, name) for run in runs]
        if None in told:
            return None
        arms.append(told)
    difference = paired(*arms)
    shares = [sum(sum(run.values()) for run in arm) / len(arm) / len(arm[0]) for arm in arms]
    p = mcnemar(difference.gains, difference.losses)  # more of them is the loss here
    return {"pristine": shares[0], "patched": shares[1], "p": p}


def _excess_of_flips(
    pristine: Sequence[Run], patched: Sequence[Run], noise: dict[str, float]
) -> float:
    """One-sided 95 % lower bound of how much more often an answer is lost than by noise."""
    pairs = list(itertools.product(pristine, patched))
    excess = [
        sum(a.correct[doc] and not b.correct[doc] for a, b in pairs) / len(pairs) - noise[doc] / 2
        for doc in noise
    ]
    n = len(excess)
    if n < 2:
        return -1.0
    mean = sum(excess) / n
    deviation = math.sqrt(sum((each - mean) ** 2 for each in excess) / (n - 1))
    return mean - float(stats.t.ppf(1 - ALPHA, n - 1)) * deviation / math.sqrt(n)


def combine(decisions: dict[str, dict[str, Any]]) -> Decision:
    """One verdict over several configurations, each the JSON of a decision; Holm over McNemar.

    A REGRESSION that rests on McNemar alone has to stand after Holm; what does not is INCONCLUSIVE.
    """
    if not decisions:
        raise Refused("no result to combine")
    names = list(decisions)
    adjusted = dict(
        zip(names, holm([decisions[k]["statistics"]["mcnemar_p"] for k in names]), strict=True)
    )
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        one = decisions[name]
        verdict = one["verdict"]
        rates = [one["statistics"].get(rate) for rate in ("invalid", "truncated")]
        rates_bad = any(
            r and r["patched"] - r["pristine"] > RATE_ALLOWANCE and r["p"] < ALPHA for r in rates
        )
        if verdict == "REGRESSION" and adjusted[name] >= ALPHA and not rates_bad:
            verdict = "INCONCLUSIVE"
        rows[name] = {"verdict": verdict, "mcnemar_p_holm": adjusted[name]}
    order = ("REGRESSION", "INCONCLUSIVE", "PASS")
    worst = next(v for v in order if any(row["verdict"] == v for row in rows.values()))
    named = [name for name in names if rows[name]["verdict"] == worst]
    further = [decisions[name].get("further_runs") or 1 for name in named]
    return Decision(
        worst,
        f"{worst} in {len(named)} of {len(names)} configurations: {', '.join(named)}",
        [f"{name}: {decisions[name]['message']}" for name in named],
        max(further) if worst == "INCONCLUSIVE" else None,
        {"configurations": rows},
    )
