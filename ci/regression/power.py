"""What a comparison can and cannot see, before it starts: exact probabilities, one run an arm.

A question is lost with (d + drop) / 2 and gained with (d - drop) / 2, where d is the share of
discordant questions. Several runs an arm count as that many more questions.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from .decide import ALPHA, FEW, POWER

DISCORDANCE = (0.01, 0.02, 0.03, 0.05, 0.13)
DROPS = (0.0, 0.005, 0.01, 0.015, 0.02, 0.03)
MARGINS = (0.005, 0.01, 0.015, 0.02)


@dataclass(frozen=True)
class Row:
    discordance: float
    error: float  # standard error of the difference
    flagged: tuple[float | None, ...]  # P(McNemar), for each of DROPS; None where drop > d
    passed: tuple[float, ...]  # P(non-inferior) without a true drop, for each of MARGINS
    needed: tuple[int, ...]  # answers an arm for POWER, for MARGINS from 1 point


def table(answers: int) -> list[Row]:
    return [row(share, answers) for share in DISCORDANCE]


def row(share: float, answers: int) -> Row:
    z = stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(POWER)
    return Row(
        share,
        float(np.sqrt(share / answers)),
        tuple(flagged(answers, share, drop) if drop <= share else None for drop in DROPS),
        tuple(passed(answers, share, margin) for margin in MARGINS),
        tuple(int(np.ceil(share * (z / margin) ** 2)) for margin in MARGINS[1:]),
    )


def _discordant(answers: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of discordant questions that occur, and their probabilities."""
    low, high = stats.binom.ppf((1e-9, 1 - 1e-9), answers, share).astype(int)
    counts = np.arange(low, high + 1)
    return counts, stats.binom.pmf(counts, answers, share)


def flagged(answers: int, share: float, drop: float) -> float:
    """P(exact one-sided McNemar < ALPHA)."""
    counts, weight = _discordant(answers, share)
    # The fewest losses among k that chance explains in less than ALPHA.
    critical = stats.binom.isf(ALPHA, counts, 0.5) + 1
    lost = (share + drop) / 2 / share
    return float(weight @ stats.binom.sf(critical - 1, counts, lost))


def passed(answers: int, share: float, margin: float) -> float:
    """P(the lower bound is above -margin) where losing and gaining are as likely."""
    counts, weight = _discordant(answers, share)
    t = stats.t.ppf(1 - ALPHA, answers - 1)
    chance = 0.0
    for k, w in zip(counts, weight, strict=True):
        losses = np.arange(k + 1)
        mean = (k - 2 * losses) / answers
        deviation = np.sqrt(np.maximum(k - answers * mean**2, 0) / (answers - 1))
        bound = mean - t * deviation / np.sqrt(answers)
        if k < FEW:
            bound = -stats.beta.ppf(1 - ALPHA, losses + 1, answers - losses)
        chance += w * stats.binom.pmf(losses, k, 0.5)[bound > -margin].sum()
    return float(chance)


def text(questions: int, runs: int) -> str:
    """The table, for people; drops and margins in points of accuracy."""
    answers = questions * runs
    header = ["discordant", "SE"]
    header += [f"drop {100 * drop:g}" for drop in DROPS]
    header += [f"pass m={100 * margin:g}" for margin in MARGINS]
    header += [f"n m={100 * margin:g}" for margin in MARGINS[1:]]
    lines = [
        f"Power of {questions} questions x {runs} runs an arm = {answers} answers: chance that a "
        "drop is flagged (McNemar),",
        "that no drop passes a margin m (lower bound), and answers an arm for a power of 80 %. "
        "In points of accuracy.",
        " | ".join(header),
    ]
    for each in table(answers):
        cells = [f"{each.discordance:.0%}", f"{100 * each.error:.2f}"]
        cells += ["–" if p is None else f"{p:.2f}" for p in each.flagged]
        cells += [f"{p:.2f}" for p in each.passed]
        cells += [str(n) for n in each.needed]
        lines.append(" | ".join(c.rjust(len(h)) for c, h in zip(cells, header, strict=True)))
    return "\n".join(lines)
