"""The group-sequential plan: when a comparison is looked at, and what each look may spend.

Fixed beforehand. A comparison is judged after 2, 4 and 12 runs of each arm and stops at the first
verdict, so quiet servers need two runs and noisy ones get more. Looking several times would find by
chance what is not there; so each look may spend only its share of the error. The shares follow
alpha-spending functions of the power family (K. Kim, D. DeMets 1987): t^3 for REGRESSION, which
keeps most of the error for the last look, and t for PASS, where t = runs / 12. The shares are
added up (Bonferroni over the looks), so no correlation between the looks is assumed: what a later
look repeats of an earlier one depends on how much of the noise is lasting. docs/accuracy.md has
the simulation.
"""

from collections.abc import Sequence

ALPHA = 0.05
LOOKS = (2, 4, 12)  # runs of each arm
LOSS_EXPONENT, PASS_EXPONENT = 3, 1
# One comparison has three ways to be a REGRESSION. The error is shared between them: a loss is what
# is hard to see, unreadable and cut-off answers come in great numbers where they come.
WEIGHTS = {"correct": 0.9, "invalid": 0.05, "truncated": 0.05}


def shares(exponent: int) -> list[float]:
    """What each look may spend of the whole error; the sum is 1."""
    reached = [(runs / LOOKS[-1]) ** exponent for runs in LOOKS]
    return [now - before for now, before in zip(reached, [0.0, *reached], strict=False)]


LOSS_SHARES, PASS_SHARES = shares(LOSS_EXPONENT), shares(PASS_EXPONENT)


def sequential(p_values: Sequence[float]) -> float:
    """The p value of a comparison from those of its looks so far: valid wherever it stops."""
    return min((p / share for p, share in zip(p_values, LOSS_SHARES, strict=False)), default=1.0)


def next_look(runs: int) -> int | None:
    """How many runs of each arm the next look needs; None after the last."""
    return next((look for look in LOOKS if look > runs), None)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
