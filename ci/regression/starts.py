"""Noise that a whole run shares: a server start that shifts every answer's chance a little.

The questions of one run do not show it, as all of them are shifted together. It shows in the
accuracies of pristine runs against each other: they differ by more than the noise of the questions
explains. More questions do not wear it down, only more starts do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

SEEN = 0.01  # pooled over a family it is said to be there where chance explains less than this


@dataclass(frozen=True)
class Starts:
    """What pristine runs show of it."""

    between: float = 0.0  # variance of the accuracies of the runs
    within: float = 0.0  # what of it the questions' own noise explains
    freedom: int = 0  # degrees of freedom of `between`; 0: nothing is known

    @property
    def variance(self) -> float:
        """Of the shift of one start."""
        return max(self.between - self.within, 0.0)

    @property
    def deviation(self) -> float:
        return float(np.sqrt(self.variance))

    @property
    def seen(self) -> bool:
        if not self.within:
            return self.between > 0
        explained = stats.chi2.sf(self.freedom * self.between / self.within, self.freedom)
        return bool(explained < SEEN)


ALIKE = Starts()  # no start shifts anything


def known(deviation: float) -> Starts:
    """Measured elsewhere, as by a family of comparisons."""
    return Starts(deviation**2, 0.0, 1_000_000)


def of_runs(runs: Sequence[dict[str, bool]]) -> Starts:
    """`runs`: the answers of the pristine arm."""
    if len(runs) < 2:
        return ALIKE
    return of_answers(np.array([[run[doc] for doc in runs[0]] for run in runs]))


def of_answers(right: np.ndarray, alike: int = 0) -> Starts:
    """`right`: one row a run, one column a question; `alike`: further ones, alike in all runs."""
    runs, questions = right.shape[0], right.shape[1] + alike
    between = right.sum(axis=1).var(ddof=1) / questions**2
    within = right.var(axis=0, ddof=1).sum() / questions**2
    return Starts(float(between), float(within), runs - 1)


def pooled(several: Iterable[Starts]) -> Starts:
    """Over comparisons, each by its degrees of freedom."""
    found = [each for each in several if each.freedom]
    freedom = sum(each.freedom for each in found)
    if not freedom:
        return ALIKE
    return Starts(
        sum(each.between * each.freedom for each in found) / freedom,
        sum(each.within * each.freedom for each in found) / freedom,
        freedom,
    )
