"""One look at a comparison: all that its verdict rests on, small enough for a result file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .paired import Paired
from .plan import ALPHA, LOOKS, PASS_SHARES, WEIGHTS, sequential
from .starts import Starts, pooled

RATE_ALLOWANCE = 0.01  # invalid or cut-off answers above the pristine arm's


@dataclass(frozen=True)
class Look:
    """After `runs` of each arm. `rates`: invalid and truncated answers, where both arms tell.

    `starts` is of the runs since the look before alone: whether there is a next look depends on
    what runs have shown, and those that have shown little would be counted too often.
    """

    runs: int
    answers: Paired
    starts: Starts
    rates: Mapping[str, Paired] = field(default_factory=dict)

    def p_values(self, starts: Starts) -> dict[str, float]:
        """Of each way to be a REGRESSION."""
        return {"correct": self.answers.loss_p(starts, self.runs)} | {
            name: rate.gain_p if rate.mean > RATE_ALLOWANCE else 1.0
            for name, rate in self.rates.items()
        }

    def p(self, starts: Starts) -> float:
        """Of chance giving any of them."""
        return min(p / WEIGHTS[name] for name, p in self.p_values(starts).items())

    def lower_bound(self, starts: Starts) -> float:
        """Of the difference, with what this look may spend on PASS."""
        alpha = ALPHA * PASS_SHARES[LOOKS.index(self.runs)]
        return self.answers.lower_bound(alpha, starts, self.runs)

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "differences": _histogram(self.answers),
            "starts": asdict(self.starts),
            "rates": {name: _histogram(rate) for name, rate in self.rates.items()},
        }


def sequential_p(looks: Sequence[Look], starts: Starts | None = None) -> float:
    """Of a comparison; `starts` replaces what its own pristine runs show up to each look."""
    p_values = [look.p(starts or start_noise(looks[: n + 1])) for n, look in enumerate(looks)]
    return min(sequential(p_values), 1.0)


def start_noise(looks: Iterable[Look]) -> Starts:
    """From all pristine runs up to the last of them."""
    return pooled(look.starts for look in looks)


def from_json(said: dict[str, Any]) -> Look:
    """Raises LookupError, TypeError or ValueError for anything that `as_json` does not write."""
    runs = said["runs"]
    if runs not in LOOKS:
        raise ValueError(f"a look after {runs!r} runs")
    starts = Starts(**said["starts"])
    numbers = (starts.between, starts.within, starts.freedom)
    if any(type(each) not in (int, float) or not 0 <= each < 1e9 for each in numbers):
        raise ValueError(f"starts {said['starts']!r}")
    rates = {name: _paired(rate, runs) for name, rate in said["rates"].items()}
    if unknown := rates.keys() - WEIGHTS.keys():
        raise ValueError(f"rates of {sorted(unknown)}")
    return Look(runs, _paired(said["differences"], runs), starts, rates)


def _histogram(paired: Paired) -> dict[str, int]:
    """{difference in runs: questions}"""
    return {str(size): paired.counts[size] for size in sorted(paired.counts)}


def _paired(said: dict[str, int], runs: int) -> Paired:
    counts = {int(size): n for size, n in said.items()}
    if not counts or any(
        abs(size) > runs or type(n) is not int or n < 1 for size, n in counts.items()
    ):
        raise ValueError(f"differences {said!r} of {runs} runs")
    return Paired(counts, runs)
