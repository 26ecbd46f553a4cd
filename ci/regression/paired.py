"""The differences of two arms, question by question, and what chance explains of them.

Every question is paired with itself. With several runs an arm, a question's score in an arm is its
mean over that arm's runs: noise shrinks, and the question stays the unit.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from scipy import stats

from .plan import ALPHA
from .starts import ALIKE, Starts

FEW = 10  # discordant questions below which the normal approximation is not used


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

    def lower_bound(self, alpha: float = ALPHA, starts: Starts = ALIKE, runs: int = 1) -> float:
        """One-sided bound of the mean difference after `runs` of each arm."""
        discordant = self.losses + self.gains
        shift, freedom = self._widened(starts, runs)
        return float(
            lower_bound(
                self.questions, discordant, self.lost, self.mean, self.variance, alpha, shift,
                freedom,
            )
        )  # fmt: skip

    def loss_p(self, starts: Starts = ALIKE, runs: int = 1) -> float:
        """One-sided p of a loss; where starts shift, as if the noise were as much larger."""
        p = self._flips if self.mean < 0 else 1.0
        shift, freedom = self._widened(starts, runs)
        if not shift or not 0 < p < 1:
            return p
        own = self.variance / self.questions
        score = stats.norm.ppf(p) * math.sqrt(own / (own + shift))
        return max(p, float(stats.t.cdf(score, freedom)))

    @cached_property
    def _flips(self) -> float:
        return sign_flips(self.counts)

    @property
    def gain_p(self) -> float:
        return sign_flips({-size: n for size, n in self.counts.items()})

    def _widened(self, starts: Starts, runs: int) -> tuple[float, float]:
        """What starts add to the variance of the mean, and Satterthwaite's degrees of freedom."""
        shift, free = 2 * starts.variance / runs, float(self.questions - 1)
        if not shift:
            return 0.0, free
        own = self.variance / self.questions
        return shift, (own + shift) ** 2 / (own**2 / free + shift**2 / starts.freedom)


def lower_bound(
    n: int, discordant: int, lost: Any, mean: Any, variance: Any, alpha: float = ALPHA,
    shift: float = 0.0, freedom: float | None = None,
) -> Any:  # fmt: skip
    """One-sided lower bound of the mean difference; numbers or arrays.

    Student's t; with fewer than FEW discordant questions, where a variance says nothing, exact:
    the Clopper-Pearson upper bound of the share lost, no gain set against it (none of n:
    1 - alpha^1/n).
    `shift` is what server starts add to the variance of the mean.
    """
    error = np.sqrt(variance / n + shift)
    bound = mean - stats.t.ppf(1 - alpha, n - 1 if freedom is None else freedom) * error
    if discordant >= FEW:
        return bound
    lost_up = np.minimum(np.ceil(lost), n)
    exact = -stats.beta.ppf(1 - alpha, lost_up + 1, np.maximum(n - lost_up, 1e-9))
    return np.minimum(exact, bound) if shift else exact


def sign_flips(counts: Mapping[int, int]) -> float:
    """One-sided p of Fisher's randomisation test over the questions' differences.

    Each counts by its size squared: coins that fall otherwise in some runs make many small
    differences, a question that all runs of one arm answer and none of the other is one large.
    How often a sum this low or lower comes of the same sizes, were each as likely a loss as a gain:
    exact for equally many runs of both arms, which chance could exchange question by question. By
    convolution, so without sampling. Where all sizes are alike it is the exact McNemar test.
    """
    sizes: Counter[int] = Counter()
    for size, n in counts.items():
        sizes[size * size] += n
    del sizes[0]
    sizes = +sizes  # without those of no question
    lost = sum(size * size * n for size, n in counts.items() if size < 0)
    if len(sizes) == 1:
        [(size, n)] = sizes.items()
        return float(stats.binomtest(lost // size, n, alternative="greater").pvalue)
    return min(float(lost_by_chance(sizes)[lost:].sum()), 1.0)


def lost_by_chance(sizes: Mapping[int, int]) -> np.ndarray:
    """The probability of each sum of losses, where each difference is a loss in half of all cases.

    `sizes`: {size of a difference: how many there are}.
    """
    distribution = np.ones(1)
    for size, n in sizes.items():
        spread = np.zeros(size * n + 1)
        spread[::size] = _heads(n)
        distribution = np.convolve(distribution, spread)
    return distribution


@cache
def _heads(coins: int) -> np.ndarray:
    chances: np.ndarray = stats.binom.pmf(np.arange(coins + 1), coins, 0.5)
    return chances


def paired(pristine: Sequence[dict[str, bool]], patched: Sequence[dict[str, bool]]) -> Paired:
    """Differences of mean scores of equally many runs; a question is found by its id."""
    return Paired(
        Counter(
            sum(b[doc] for b in patched) - sum(a[doc] for a in pristine) for doc in pristine[0]
        ),
        len(pristine),
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


def share(discordant: dict[str, float]) -> float | None:
    return sum(discordant.values()) / len(discordant) if discordant else None
