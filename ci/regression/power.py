"""What one look can and cannot see, before anything starts: probabilities of the rule of decide.py.

Supposed of the questions: a share `drop` is lost for good, right in each pristine run and wrong in
each patched one. Noise is that 2 (d - drop) of them are coins, right in half of all runs of either
arm; so d is the share that a pristine and a patched run differ in. More runs wear the noise down,
but what is lost for good no further, and the questions stay as many as they are: the exact bound,
with its need of some 500 for a margin of 1 point, is of questions. Servers' starts are supposed to
shift nothing. A look spends what the plan gives to it, so a later one sees more than this alone.

How many questions differ by how much is drawn (DRAWS times, always the same ones, a chance is right
within 0.02); for each draw the chances are exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from .decide import POWER
from .paired import lost_by_chance, lower_bound
from .plan import ALPHA, LOOKS, LOSS_SHARES, PASS_SHARES, WEIGHTS

DISCORDANCE = (0.01, 0.02, 0.03, 0.05, 0.13)
DROPS = (0.0, 0.005, 0.01, 0.015, 0.02, 0.03)
MARGINS = (0.005, 0.01, 0.015, 0.02)
DRAWS = 200


@dataclass(frozen=True)
class Row:
    discordance: float
    error: float  # standard error of the difference
    flagged: tuple[float | None, ...]  # P(REGRESSION by loss), for DROPS; None where drop > d
    passed: tuple[float, ...]  # P(non-inferior) without a true drop, for each of MARGINS
    needed: tuple[int, ...]  # questions for POWER with these runs, for MARGINS from 1 point


def table(questions: int, runs: int, family: int = 1) -> list[Row]:
    """Of the look after so many `runs` of each arm."""
    look = LOOKS.index(runs)
    loss = ALPHA * LOSS_SHARES[look] * WEIGHTS["correct"] / family
    return [row(d, questions, runs, loss, ALPHA * PASS_SHARES[look]) for d in DISCORDANCE]


def row(
    share: float, questions: int, runs: int, loss: float = ALPHA, passing: float = ALPHA
) -> Row:
    """`loss`, `passing`: what may be spent on a REGRESSION and on a PASS."""
    return Row(
        share,
        float(np.sqrt(share / runs / questions)),
        tuple(
            flagged(questions, runs, share, drop, loss) if drop <= share else None for drop in DROPS
        ),
        passed(questions, runs, share, MARGINS, passing),
        tuple(needed(runs, share, margin, passing) for margin in MARGINS[1:]),
    )


def needed(runs: int, share: float, margin: float, alpha: float = ALPHA) -> int:
    """Questions with which a bound passes with POWER where nothing is lost."""
    exact = np.log(alpha) / np.log1p(-margin)  # with no discordance at all
    z = stats.norm.ppf(1 - alpha) + stats.norm.ppf(POWER)
    return int(np.ceil(max(share / runs * (z / margin) ** 2, exact)))


def _drawn(
    questions: int, runs: int, share: float, drop: float
) -> Iterator[tuple[dict[int, int], int]]:
    """{size in 1/runs: coins that differ so much}, and how many questions are lost for good."""
    sizes = np.arange(1, runs + 1)
    heads_apart = 2 * stats.binom.pmf(runs + sizes, 2 * runs, 0.5)
    coins = 2 * (share - drop) * heads_apart
    chances = [*coins, drop, 1 - coins.sum() - drop]
    for drawn in np.random.default_rng(0).multinomial(questions, chances, DRAWS):
        yield dict(zip(sizes.tolist(), drawn.tolist(), strict=False)), int(drawn[runs])


def flagged(questions: int, runs: int, share: float, drop: float, alpha: float = ALPHA) -> float:
    """P(the one-sided sign-flip test gives p < alpha)."""
    chance = 0.0
    for coins, for_good in _drawn(questions, runs, share, drop):
        squares = {size * size: n for size, n in coins.items()}
        whole = runs * runs
        by_chance = lost_by_chance({**squares, whole: squares[whole] + for_good})
        p = by_chance[::-1].cumsum()[::-1]
        fewest = int(np.argmax(p < alpha)) if p[-1] < alpha else len(p)
        chance += lost_by_chance(squares)[max(fewest - whole * for_good, 0) :].sum()
    return float(chance / DRAWS)


def passed(
    questions: int, runs: int, share: float, margins: tuple[float, ...], alpha: float = ALPHA
) -> tuple[float, ...]:
    """P(the lower bound is above -margin) where nothing is lost for good, for each margin."""
    chances = np.zeros(len(margins))
    for coins, _ in _drawn(questions, runs, share, 0.0):
        by_chance = lost_by_chance(coins)
        lost = np.arange(len(by_chance)) / runs
        mean = (lost[-1] - 2 * lost) / questions
        squares = sum(n * (size / runs) ** 2 for size, n in coins.items())
        variance = (squares - questions * mean**2) / max(questions - 1, 1)
        bound = lower_bound(questions, sum(coins.values()), lost, mean, variance, alpha)
        chances += [by_chance[bound > -margin].sum() for margin in margins]
    return tuple(float(chance) for chance in chances / DRAWS)


@cache
def text(questions: int, runs: int, family: int = 1) -> str:
    """The table, for people; drops and margins in points of accuracy."""
    header = ["discordant", "SE"]
    header += [f"drop {100 * drop:g}" for drop in DROPS]
    header += [f"pass m={100 * margin:g}" for margin in MARGINS]
    header += [f"n m={100 * margin:g}" for margin in MARGINS[1:]]
    lines = [
        f"Power of {questions} questions at the look after {runs} runs of each arm"
        + (f", one of {family} comparisons" if family > 1 else "")
        + ", by the share of questions in which",
        "two runs differ: chance that a drop is flagged (sign-flip test), that no drop passes a "
        "margin m (lower bound), and questions",
        f"for a power of 80 %. The plan looks after {', '.join(map(str, LOOKS))} runs.",
        "Drops and margins in points of accuracy.",
        " | ".join(header),
    ]
    for each in table(questions, runs, family):
        cells = [f"{each.discordance:.0%}", f"{100 * each.error:.2f}"]
        cells += ["–" if p is None else f"{p:.2f}" for p in each.flagged]
        cells += [f"{p:.2f}" for p in each.passed]
        cells += [str(n) for n in each.needed]
        lines.append(" | ".join(c.rjust(len(h)) for c, h in zip(cells, header, strict=True)))
    return "\n".join(lines)
