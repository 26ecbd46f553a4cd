"""The verdict over saved runs of both arms: pairing and statistics, nothing else.

Every question is paired with itself. With several runs an arm, a question's score in an arm is its
mean over that arm's runs: noise shrinks, and the question stays the unit. Sources: E. Miller,
"Adding Error Bars to Evals" (arXiv 2411.00640: paired differences, power); A. Dutta et al.,
"Accuracy is Not All You Need" (arXiv 2407.09141: flips); Q. McNemar (1947), R. A. Fisher (1935:
randomisation of signs), S. Holm (1979).

REGRESSION    more of the questions' scores lost than gained than chance explains (one-sided
              sign-flip test; with one run an arm the exact McNemar test), or clearly more answers
              that cannot be read or are cut off
PASS          no REGRESSION; the one-sided 95 % lower bound of the paired difference is above
              -margin; no more flips than noise and an allowance explain
INCONCLUSIVE  neither; says how many further runs an arm, or how many questions, would settle it,
              where that can
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

from .errors import Refused
from .questions import GSM8K, Run, same_questions

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
Z = float(stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(POWER))


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
    """How many questions have which difference patched - pristine of their scores.

    `counts`: {difference: questions}, the differences as whole numbers of 1/`unit`: thirds that
    cancel must cancel.
    """

    counts: Mapping[int, int]
    unit: int = 1

    @property
    def questions(self) -> int:
        return sum(self.counts.values())

    @property
    def losses(self) -> int:
        """Questions whose score fell."""
        return sum(n for size, n in self.counts.items() if size < 0)

    @property
    def gains(self) -> int:
        return sum(n for size, n in self.counts.items() if size > 0)

    @property
    def lost(self) -> float:
        """The sum of the falls, in questions."""
        return -sum(size * n for size, n in self.counts.items() if size < 0) / self.unit

    @property
    def mean(self) -> float:
        return sum(size * n for size, n in self.counts.items()) / self.questions / self.unit

    @property
    def variance(self) -> float:
        """Sample variance of one question's difference."""
        if self.questions == 1:
            return 0.0
        squares = sum((size / self.unit - self.mean) ** 2 * n for size, n in self.counts.items())
        return squares / (self.questions - 1)

    @property
    def lower_bound(self) -> float:
        discordant = self.losses + self.gains
        return float(lower_bound(self.questions, discordant, self.lost, self.mean, self.variance))

    @property
    def loss_p(self) -> float:
        return sign_flips(self.counts)

    @property
    def gain_p(self) -> float:
        return sign_flips({-size: n for size, n in self.counts.items()})


def lower_bound(n: int, discordant: int, lost: Any, mean: Any, variance: Any) -> Any:
    """One-sided 95 % lower bound of the mean difference; numbers or arrays.

    Student's t; with fewer than FEW discordant questions, where a variance says nothing, exact: the
    Clopper-Pearson upper bound of the share lost, no gain set against it (none of n: 1 - 0.05^1/n).
    """
    if discordant < FEW:
        lost_up = np.minimum(np.ceil(lost), n)
        return -stats.beta.ppf(1 - ALPHA, lost_up + 1, np.maximum(n - lost_up, 1e-9))
    return mean - stats.t.ppf(1 - ALPHA, n - 1) * np.sqrt(variance / n)


def sign_flips(counts: Mapping[int, int]) -> float:
    """One-sided p of Fisher's randomisation test over the questions' differences.

    How often a sum this low or lower comes of the same sizes, were each as likely a loss as a gain;
    by convolution, so without sampling. With one run an arm it is the exact McNemar test. It is
    exact for equally many runs of both arms, where arms that are alike could be exchanged, question
    by question. For unequal numbers a difference is not symmetric about 0 (one run against two: a
    loss of 1 is rarer than a gain of 1/2), and the test is exact only in the limit of many
    discordant questions; it is one of the mean then, as everywhere, not of how many signs fell.
    """
    sizes: Counter[int] = Counter()
    for size, n in counts.items():
        sizes[abs(size)] += n
    lost = -sum(size * n for size, n in counts.items() if size < 0)
    return min(float(lost_by_chance(sizes)[lost:].sum()), 1.0)


def lost_by_chance(sizes: Mapping[int, int]) -> np.ndarray:
    """The probability of each sum of losses, where each difference is a loss in half of all cases.

    `sizes`: {size of a difference: how many there are}.
    """
    distribution = np.ones(1)
    for size, n in sizes.items():
        if size:
            spread = np.zeros(size * n + 1)
            spread[::size] = _heads(n)
            distribution = np.convolve(distribution, spread)
    return distribution


@cache
def _heads(coins: int) -> np.ndarray:
    chances: np.ndarray = stats.binom.pmf(np.arange(coins + 1), coins, 0.5)
    return chances


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def paired(pristine: Sequence[dict[str, bool]], patched: Sequence[dict[str, bool]]) -> Paired:
    """Differences of mean scores."""
    unit = math.lcm(len(pristine), len(patched))
    one, other = unit // len(pristine), unit // len(patched)
    return Paired(
        Counter(
            other * sum(run[doc] for run in patched) - one * sum(run[doc] for run in pristine)
            for doc in pristine[0]
        ),
        unit,
    )


def discordance(pairs: Sequence[tuple[dict[str, bool], dict[str, bool]]]) -> dict[str, float]:
    """For each question the share of the pairs of runs that differ in it; empty without a pair."""
    if not pairs:
        return {}
    return {
        doc: sum(one[doc] != other[doc] for one, other in pairs) / len(pairs) for doc in pairs[0][0]
    }


def noise_of(runs: Sequence[dict[str, bool]]) -> dict[str, float]:
    """The discordance of one arm's runs among themselves; empty for a single run."""
    return discordance(list(itertools.combinations(runs, 2)))


def _share(discordant: dict[str, float]) -> float | None:
    return sum(discordant.values()) / len(discordant) if discordant else None


@dataclass(frozen=True)
class Remedy:
    """What would settle an open question; neither: nothing of the kind."""

    further_runs: int | None = None  # of each arm
    questions: int | None = None  # in all, instead of those that were asked


def remedy(
    difference: Paired, noise: float | None, runs: tuple[int, int], distance: float
) -> Remedy:
    """What shows, with POWER, a mean that lies `distance` from what is to be excluded.

    `noise`: the share of the questions that two runs of the pristine arm differ in. More runs
    average that out, and nothing else: a question that one arm always answers and the other never
    does needs more questions. None: not known, so all of what was seen is taken for it.
    """
    pooled = 2 / sum(1 / each for each in runs)
    if noise is None:
        noise = difference.variance * pooled
    lasting = max(difference.variance - noise / pooled, 0.0)
    aim = (distance / Z) ** 2  # the variance of the mean
    if noise and lasting < aim * difference.questions:
        needed = math.ceil(noise / (aim * difference.questions - lasting))
        return Remedy(further_runs=max(needed - min(runs), 1))
    return Remedy(questions=math.ceil(difference.variance / aim))


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
    answers = [run.correct for run in pristine], [run.correct for run in patched]
    runs = len(pristine), len(patched)
    difference = paired(*answers)
    n = difference.questions
    noise = noise_of(answers[0])
    a_a, flipped = _share(noise), _share(discordance(list(itertools.product(*answers))))
    if margin is None:
        margin = MARGIN if a_a is None or a_a <= QUIET else NOISY_MARGIN
    p = difference.loss_p
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
    still_open: dict[str, Remedy] = {}
    untold = []
    if p < ALPHA:
        bad.append(
            f"{difference.losses} questions lost, {difference.gains} gained: by chance in "
            f"{p:.2g} of cases (one-sided sign-flip test over the questions, below {ALPHA})"
        )
    for name in ("invalid", "truncated"):
        columns = [[getattr(run, name) for run in arm] for arm in (pristine, patched)]
        if any(None in arm for arm in columns):
            statistics[name] = None
            untold.append(name)
            continue
        rate = paired(*columns)
        shares = [sum(sum(run.values()) for run in arm) / len(arm) / n for arm in columns]
        statistics[name] = {"pristine": shares[0], "patched": shares[1], "p": rate.gain_p}
        if rate.mean <= RATE_ALLOWANCE:
            continue
        sentence = (
            f"{name} answers: {shares[1]:.2%} patched, {shares[0]:.2%} pristine, "
            f"more than {RATE_ALLOWANCE:.0%} above"
        )
        if rate.gain_p < ALPHA:
            bad.append(sentence)
        else:
            still_open[sentence] = remedy(rate, _share(noise_of(columns[0])), runs, rate.mean)
    if difference.lower_bound <= -margin:
        sentence = (
            f"a loss of {-difference.lower_bound:.2%} cannot be excluded, the margin is "
            f"{margin:.1%}"
        )
        still_open[sentence] = _of_bound(difference, a_a, runs, margin)
    if a_a is None:
        still_open[
            "one pristine run alone: its own noise is not known, so nothing can pass; a second "
            "pristine run is needed"
        ] = Remedy(further_runs=1)
    elif _excess_of_flips(pristine, patched, noise) > FLIP_ALLOWANCE:
        still_open[
            f"{flipped:.2%} of the questions flip between the arms, {a_a:.2%} between pristine "
            "runs: more than noise; look at the flipped questions, further runs will not settle it"
        ] = Remedy()
    score = sum(run.accuracy for run in pristine) / len(pristine)
    if score < floor:
        still_open[
            f"the pristine arm answers {score:.2%}, below the floor of {floor:.0%}: this setting "
            "does not work even without the patches, so a comparison says nothing"
        ] = Remedy()
    if bad:
        return Decision("REGRESSION", "; ".join(bad), [*bad, *still_open], None, statistics)
    if not still_open:
        message = (
            f"no loss above {margin:.1%}: difference {difference.mean:+.2%}, lower bound "
            f"{difference.lower_bound:+.2%} over {n} questions"
        )
        if untold:
            message += f"; {' and '.join(untold)} answers were not compared: not in every log"
        return Decision("PASS", message, [], None, statistics)
    further, sentence = _settled(list(still_open.values()), min(runs))
    message = "; ".join(still_open) + sentence
    return Decision("INCONCLUSIVE", message, list(still_open), further, statistics)


def _of_bound(
    difference: Paired, noise: float | None, runs: tuple[int, int], margin: float
) -> Remedy:
    """What lifts the lower bound above -margin, or shows the loss that was seen to be one."""
    distance = max(margin + difference.mean, -difference.mean)
    found = remedy(difference, noise, runs, distance)
    if difference.losses + difference.gains >= FEW:
        return found
    # The exact bound knows no runs. (Poisson's limit: a little above Clopper and Pearson's.)
    exact = stats.gamma.ppf(1 - ALPHA, math.ceil(difference.lost) + 1) / margin
    return Remedy(questions=math.ceil(max(exact, difference.variance * (Z / distance) ** 2)))


def _settled(remedies: Sequence[Remedy], runs: int) -> tuple[int | None, str]:
    """Further runs that settle all of it, and what to say; None and nothing where they cannot."""
    if Remedy() in remedies:
        return None, ""
    if questions := max((each.questions or 0 for each in remedies), default=0):
        said = f". About {questions} questions would settle it with a power of {POWER:.0%}"
        if questions > GSM8K:
            return None, f"{said}, and GSM8K has {GSM8K}: further runs would not, a --margin might"
        return None, f"{said}, further runs would not: --limit {questions} or more"
    further = max(each.further_runs or 0 for each in remedies)
    return further, (
        f". {further} further run{'s' * (further > 1)} of each arm would settle it with a power of "
        f"{POWER:.0%}: keep all runs, add these (--runs {runs + further}), decide once more"
    )


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


def off_path(decision: Decision, declined: Sequence[str]) -> Decision:
    """No PASS for patches whose calls took the pristine path: that was compared with itself."""
    if decision.verdict != "PASS" or not declined:
        return decision
    reasons = [f"pristine path taken in the patched arm: {line}" for line in declined]
    message = f"{'; '.join(reasons)}. So this says nothing of the patch; else: {decision.message}"
    return Decision("INCONCLUSIVE", message, reasons, None, decision.statistics)


def combine(decisions: dict[str, dict[str, Any]]) -> Decision:
    """One verdict over several configurations, each the JSON of a decision; Holm over `mcnemar_p`.

    A REGRESSION that rests on it alone has to stand after Holm; what does not is INCONCLUSIVE.
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
    further = [decisions[name].get("further_runs") for name in named]
    known = [each for each in further if each is not None]
    return Decision(
        worst,
        f"{worst} in {len(named)} of {len(names)} configurations: {', '.join(named)}",
        [_in_company(name, decisions[name], rows[name]) for name in named],
        max(known) if worst == "INCONCLUSIVE" and len(known) == len(named) else None,
        {"configurations": rows},
    )


def _in_company(name: str, decision: dict[str, Any], row: dict[str, Any]) -> str:
    said = f"{name}: {decision['message']}"
    if decision["verdict"] == row["verdict"]:
        return said
    return (
        f"{said}. Of so many configurations chance gives such a one in {row['mcnemar_p_holm']:.2g} "
        "of cases (Holm): pool further runs of this one, keep all others, combine once more"
    )
