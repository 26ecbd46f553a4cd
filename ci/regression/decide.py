"""The verdict over saved runs of both arms, look by look (plan.py): statistics, nothing else.

Sources: E. Miller, "Adding Error Bars to Evals" (arXiv 2411.00640: paired differences, power);
A. Dutta et al., "Accuracy is Not All You Need" (arXiv 2407.09141: flips); Q. McNemar (1947),
R. A. Fisher (1935: randomisation of signs), K. Lan and D. DeMets (1983: alpha spending).

REGRESSION    more questions lost than gained, more than chance explains (one-sided sign-flip
              test), or clearly more answers that hold no number or are cut off
PASS          no REGRESSION; the one-sided lower bound of the paired difference is above -margin; no
              more flips than noise and an allowance explain
INCONCLUSIVE  neither; says what would settle it: the runs up to the next look, or more questions
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy import stats

from .errors import Refused
from .look import RATE_ALLOWANCE, Look, sequential_p, start_noise
from .paired import FEW, discordance, noise_of, paired, share
from .plan import ALPHA, LOOKS, WEIGHTS, next_look
from .questions import GSM8K, Run, same_questions
from .starts import Starts, of_runs

POWER = 0.80
MARGIN = 0.01
# Right in the pristine arm, wrong in the patched one, above what pristine runs lose to each other:
# not their difference with what is gained, which a patch that answers otherwise may hide.
FLIP_ALLOWANCE = 0.01
FLOOR = 0.10  # a pristine arm below this answers nothing that could be lost
UNREADABLE = 0.03  # answers without a number, above which the setting and not the model is measured
Z = float(stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(POWER))


@dataclass
class Decision:
    verdict: str
    message: str
    reasons: list[str]
    further_runs: int | None  # of each arm, up to the next look
    statistics: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """What a comparison is held to, fixed before its first run."""

    margin: float = MARGIN
    floor: float = FLOOR
    family: int = 1  # comparisons that are judged together: REGRESSION alone needs ALPHA / family
    starts: Starts | None = None  # what a server start shifts, where a family has measured it


def decide(pristine: Sequence[Run], patched: Sequence[Run], rule: Rule = Rule()) -> Decision:
    """The runs of each arm in the order in which they were made.

    Each look takes the first runs of both arms, and the first verdict stands, whatever came later.
    Raises Refused where the runs cannot be paired.
    """
    if not pristine or not patched:
        raise Refused("at least one run of each arm is needed: --pristine F --patched F")
    same_questions([*pristine, *patched])
    there = min(len(pristine), len(patched))
    if there < LOOKS[0]:
        return Decision(
            "INCONCLUSIVE",
            f"{len(pristine)} pristine and {len(patched)} patched runs: a run alone does not show "
            f"its noise, so the first look is after {LOOKS[0]} runs of each arm",
            ["before the first look"],
            LOOKS[0] - there,
            _summary(pristine, patched, [], rule),
        )
    looks: list[Look] = []
    for runs in LOOKS:
        if runs > there:
            break
        arms = pristine[:runs], patched[:runs]
        looks.append(_look(*arms, since=looks[-1].runs if looks else 0))
        decision = _at(*arms, looks, rule)
        if decision.verdict != "INCONCLUSIVE":
            break
    return decision


def _look(pristine: Sequence[Run], patched: Sequence[Run], since: int) -> Look:
    rates = {}
    for name in ("invalid", "truncated"):
        columns = [[getattr(run, name) for run in arm] for arm in (pristine, patched)]
        if not any(None in arm for arm in columns):
            rates[name] = paired(*columns)
    answers = [run.correct for run in pristine], [run.correct for run in patched]
    return Look(len(pristine), paired(*answers), of_runs(answers[0][since:]), rates)


def _at(
    pristine: Sequence[Run], patched: Sequence[Run], looks: Sequence[Look], rule: Rule
) -> Decision:
    """The decision at the last of `looks`, whose runs these are."""
    look = looks[-1]
    starts = rule.starts or start_noise(looks)
    statistics = _summary(pristine, patched, looks, rule)
    bad = []
    if sequential_p(looks, rule.starts) < ALPHA / rule.family:
        bad = _ways(look, starts, statistics, rule)
    still_open = _unreadable(statistics) | _untold(pristine, patched)
    bound = look.lower_bound(starts)
    if bound <= -rule.margin:
        sentence = f"a loss of {-bound:.2%} cannot be excluded, the margin is {rule.margin:.1%}"
        still_open[sentence] = _remedy(look, statistics["flips"], starts, rule.margin)
    flips = statistics["flips"]
    if _excess_of_flips(pristine, patched) > FLIP_ALLOWANCE:
        still_open[
            f"{flips['patched_pristine']:.2%} of the questions flip between the arms, "
            f"{flips['pristine_pristine']:.2%} between pristine runs: more than noise; look at the "
            "flipped questions, further runs will not settle it"
        ] = Remedy()
    score = sum(run.accuracy for run in pristine) / len(pristine)
    if score < rule.floor:
        still_open[
            f"the pristine arm answers {score:.2%}, below the floor of {rule.floor:.0%}: this "
            "setting does not work even without the patches, so a comparison says nothing"
        ] = Remedy()
    if bad:
        return Decision("REGRESSION", "; ".join(bad), [*bad, *still_open], None, statistics)
    if not still_open:
        message = (
            f"no loss above {rule.margin:.1%}: difference {look.answers.mean:+.2%}, lower bound "
            f"{bound:+.2%} over {look.answers.questions} questions, {look.runs} runs of each arm"
        )
        if untold := [name for name in ("invalid", "truncated") if name not in look.rates]:
            message += f"; {' and '.join(untold)} answers were not compared: not in every log"
        return Decision("PASS", message, [], None, statistics)
    further, sentence = _settled(list(still_open.values()), look.runs)
    message = "; ".join(still_open) + sentence
    return Decision("INCONCLUSIVE", message, list(still_open), further, statistics)


def _summary(
    pristine: Sequence[Run], patched: Sequence[Run], looks: Sequence[Look], rule: Rule
) -> dict[str, Any]:
    """Of the last look, or of all runs before the first; with all that a family's verdict needs."""
    both = min(len(pristine), len(patched))
    answers = [[run.correct for run in arm] for arm in (pristine, patched)]
    difference = looks[-1].answers if looks else paired(*(arm[:both] for arm in answers))
    starts = rule.starts or start_noise(looks)
    found: dict[str, Any] = {
        "questions": difference.questions,
        "runs": {"pristine": len(pristine), "patched": len(patched)},
        "accuracy": {
            "pristine": [round(run.accuracy, 6) for run in pristine],
            "patched": [round(run.accuracy, 6) for run in patched],
        },
        "difference": difference.mean,
        "lower_bound": looks[-1].lower_bound(starts) if looks else None,
        "margin": rule.margin,
        "losses": difference.losses,
        "gains": difference.gains,
        "p": sequential_p(looks, rule.starts),
        "family": rule.family,
        "flips": {
            "pristine_pristine": share(noise_of(answers[0])),
            "patched_pristine": share(discordance(list(itertools.product(answers[0], answers[1])))),
        },
        "start_noise": starts.deviation,
        "looks": [look.as_json() for look in looks],
    }
    for name in ("invalid", "truncated"):
        columns = [[getattr(run, name) for run in arm] for arm in (pristine, patched)]
        found[name] = None
        if looks and name in looks[-1].rates:
            shares = [sum(map(_share_of, arm)) / len(arm) for arm in columns]
            found[name] = dict(zip(("pristine", "patched"), shares, strict=True))
            found[name]["p"] = looks[-1].rates[name].gain_p
    return found


def _share_of(column: dict[str, bool]) -> float:
    return sum(column.values()) / len(column)


def _ways(look: Look, starts: Starts, statistics: dict[str, Any], rule: Rule) -> list[str]:
    """Each of the ways in which this look, or an earlier one, is a REGRESSION."""
    found = []
    p_values = look.p_values(starts)
    least = min(p_values, key=lambda name: p_values[name] / WEIGHTS[name])
    level = f"the whole plan: p = {statistics['p']:.2g}, below {ALPHA / rule.family:.2g}"
    if least == "correct":
        found.append(
            f"{look.answers.losses} questions lost, {look.answers.gains} gained, in "
            f"{look.runs} runs of each arm: {look.answers.mean:+.2%}; by chance in "
            f"{p_values['correct']:.2g} of cases (one-sided sign-flip test); {level}"
        )
    for name, rate in look.rates.items():
        if p_values[name] < ALPHA * WEIGHTS[name] / rule.family or least == name:
            found.append(
                f"{name} answers: {statistics[name]['patched']:.2%} patched, "
                f"{statistics[name]['pristine']:.2%} pristine, {rate.mean:+.2%} where "
                f"{RATE_ALLOWANCE:.0%} is allowed; {level}"
            )
    return found


@dataclass(frozen=True)
class Remedy:
    """What would settle an open question; neither: nothing of the kind."""

    runs: int | None = None  # of each arm, in all
    questions: int | None = None  # in all, instead of those that were asked
    of_starts: bool = False  # most of the noise comes with a server start


def _unreadable(statistics: dict[str, Any]) -> dict[str, Remedy]:
    """An arm whose answers hold no number measures the setting, not the model."""
    rate = statistics["invalid"] or {}
    return {
        f"{rate[arm]:.2%} of the answers of the {arm} arm hold no number, more than "
        f"{UNREADABLE:.0%}: the accuracy is that of the setting; look at `text` in the logs, and "
        "see --protocol and --max-tokens": Remedy()
        for arm in ("pristine", "patched")
        if rate.get(arm, 0) > UNREADABLE
    }


def _untold(pristine: Sequence[Run], patched: Sequence[Run]) -> dict[str, Remedy]:
    """What one arm tells and the other does not cannot be compared, so it cannot be passed."""
    found = {}
    for name in ("invalid", "truncated"):
        told = [[getattr(run, name) is not None for run in arm] for arm in (pristine, patched)]
        if any(any(arm) for arm in told) and not all(all(arm) for arm in told):
            found[
                f"{name} answers are told by some logs alone, so the arms cannot be compared in "
                "them: give logs that all tell it"
            ] = Remedy()
    return found


def _remedy(look: Look, flips: dict[str, float], starts: Starts, margin: float) -> Remedy:
    """What lifts the lower bound above -margin with POWER, or shows the loss that was seen.

    More runs average out what two pristine runs differ in, and what a start shifts; nothing else: a
    question that one arm always answers and the other never does needs more questions.
    """
    difference = look.answers
    distance = max(margin + difference.mean, -difference.mean)
    aim, n = (distance / Z) ** 2, difference.questions  # the variance of the mean
    if difference.losses + difference.gains < FEW and not starts.variance:
        # The exact bound knows no runs. (Poisson's limit: a little above Clopper and Pearson's.)
        exact = stats.gamma.ppf(1 - ALPHA / 2, math.ceil(difference.lost) + 1) / margin
        return Remedy(questions=math.ceil(max(exact, difference.variance / aim)))
    of_questions, of_starts = flips["pristine_pristine"] / n, 2 * starts.variance
    lasting = max(difference.variance / n - of_questions / look.runs, 0.0)
    if of_questions + of_starts and lasting < aim:
        needed = math.ceil((of_questions + of_starts) / (aim - lasting))
        return Remedy(runs=max(needed, look.runs + 1), of_starts=of_starts > of_questions)
    return Remedy(questions=math.ceil(difference.variance / aim))


def _settled(remedies: Sequence[Remedy], runs: int) -> tuple[int | None, str]:
    """Runs up to the next look, and what to say; None where no runs of the plan settle it."""
    if Remedy() in remedies:
        return None, ""
    if questions := max((each.questions or 0 for each in remedies), default=0):
        said = f". About {questions} questions would settle it with a power of {POWER:.0%}"
        if questions > GSM8K:
            return None, f"{said}, and GSM8K has {GSM8K}: further runs would not, a --margin might"
        return None, f"{said}, further runs would not: --limit {questions} or more"
    needed = max(each.runs or 0 for each in remedies)
    what = "starts" if any(each.of_starts for each in remedies) else "runs"
    said = f". About {needed} {what} of each arm settle it with a power of {POWER:.0%}"
    if what == "starts":
        said += ", more questions do not: most of the noise comes with a server's start"
    if (look := next_look(runs)) is None:
        return None, f"{said}; the plan ends after {runs}"
    return look - runs, f"{said}; the plan looks again after {look}"


def _excess_of_flips(pristine: Sequence[Run], patched: Sequence[Run]) -> float:
    """One-sided 95 % lower bound of how much more often an answer is lost than by noise."""
    pairs = list(itertools.product(pristine, patched))
    noise = noise_of([run.correct for run in pristine])
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
