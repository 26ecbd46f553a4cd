"""Catches a verdict that the numbers do not bear: a wrong test, margin, pairing, count of runs."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")

import numpy as np
from scipy import stats

from ci.regression import decide, paired, plan, power
from ci.regression.errors import Refused
from ci.regression.questions import Run
from tests.regression.drawn import N, run, runs

# What a loaded machine takes for an example says nothing of the rule.
unhurried = settings(deadline=None)


def test_equal_runs_pass():
    found = decide.decide(runs({1, 2}, {2, 3}), runs({1, 3}, {2}))
    assert found.verdict == "PASS"
    assert found.further_runs is None


def test_a_clear_loss_is_a_regression():
    found = decide.decide(runs({1}, {2}), runs(range(40), range(40)))
    assert found.verdict == "REGRESSION"
    assert found.statistics["losses"] == 40  # questions 1 and 2 fell by half, and count as lost
    assert found.statistics["difference"] == pytest.approx(-78 / 2 / N)


def test_a_gain_passes_however_large():
    assert decide.decide(runs(range(40), range(40)), runs({1}, {2})).verdict == "PASS"


@unhurried
@given(losses=st.integers(0, 60), gains=st.integers(0, 60))
def test_with_one_run_an_arm_the_loss_is_judged_by_the_exact_mcnemar_test(losses, gains):
    tail = 1.0
    if losses + gains:
        tail = stats.binomtest(losses, losses + gains, alternative="greater").pvalue
    assert paired.sign_flips({-1: losses, 0: 9, 1: gains}) == pytest.approx(tail)


@unhurried
@given(st.lists(st.integers(-6, 6), max_size=10))
def test_by_chance_every_difference_is_a_loss_in_half_of_all_cases(differences):
    """Against all ways of giving these sizes a sign."""
    signed = itertools.product(*[(-abs(size), abs(size)) for size in differences])
    weights = [sum(x * abs(x) for x in each) for each in signed]
    as_low = [weight <= sum(x * abs(x) for x in differences) for weight in weights]
    p = paired.sign_flips(Counter(differences))
    assert p == pytest.approx(sum(as_low) / len(as_low))


# Chances of a right answer in any run; `d`: the share of questions that two runs differ in.
NOISE = {
    "coins": lambda d: np.where(np.arange(N) < 2 * d * N, 0.5, 1.0),
    "rare slips": lambda d: np.full(N, (1 + math.sqrt(1 - 2 * d)) / 2),
}


def judged(chances, runs, times):
    """`times` comparisons of runs that are alike, as the differences of their questions."""
    numbers, (a, b) = np.random.default_rng(0), runs
    pristine = numbers.binomial(a, chances, (times, N)) * (math.lcm(a, b) // a)
    patched = numbers.binomial(b, chances, (times, N)) * (math.lcm(a, b) // b)
    for each in patched - pristine:
        values, counts = np.unique(each, return_counts=True)
        yield paired.Paired(dict(zip(values.tolist(), counts.tolist(), strict=True)))


@pytest.mark.parametrize("d", [0.02, 0.05])
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("runs", [(1, 1), (2, 2), (4, 4)], ids=str)
def test_arms_that_are_alike_are_flagged_in_no_more_than_one_case_in_twenty(runs, noise, d):
    times = 400
    found = list(judged(NOISE[noise](d), runs, times))
    for p_values in ([each.loss_p() for each in found], [each.gain_p for each in found]):
        flagged = sum(p < 0.05 for p in p_values)
        assert stats.binomtest(flagged, times, 0.05, alternative="greater").pvalue > 0.001
        assert flagged > 0


def test_holm_multiplies_the_smallest_by_all_and_never_turns_back():
    assert plan.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert plan.holm([0.9, 0.8]) == [1.0, 1.0]


@unhurried
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_definition_rejects(p_values):
    rejected, left = set(), len(p_values)
    for index in sorted(range(left), key=p_values.__getitem__):
        if p_values[index] * left >= 0.05:
            break
        rejected.add(index)
        left -= 1
    adjusted = plan.holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p < 0.05} == rejected


def test_without_a_discordant_question_the_bound_is_exact():
    bound = paired.paired(*[[r.correct for r in runs(())] for _ in range(2)]).lower_bound
    assert bound() == pytest.approx(-(1 - 0.05 ** (1 / N)))


def test_few_questions_pass_nothing_however_equal_and_further_runs_do_not_help():
    """None of 100 lost excludes no loss under 3 points, in however many runs."""
    for count in (2, 3, 30):
        same = runs(*[()] * count, n=100)
        found = decide.decide(same, same)
        assert (found.verdict, found.further_runs) == ("INCONCLUSIVE", None)
        assert "--limit" in found.message
        assert "further runs would not" in found.message
    enough = runs((), (), n=480)
    assert decide.decide(enough, enough).verdict == "PASS"


def test_more_questions_than_there_are_is_no_remedy():
    same = runs((), ())
    found = decide.decide(same, same, decide.Rule(margin=0.001))
    assert (found.verdict, found.further_runs) == ("INCONCLUSIVE", None)
    assert "GSM8K has 1319" in found.message


def test_what_every_run_shows_again_is_settled_by_questions_not_by_runs():
    """Of ten questions one arm always answers five, the other the other five."""
    pristine, patched = runs(*[range(5)] * 2, n=600), runs(*[range(5, 10)] * 2, n=600)
    found = decide.decide(pristine, patched)
    assert (found.verdict, found.further_runs) == ("INCONCLUSIVE", None)
    assert "--limit" in found.message


def test_what_runs_cannot_settle_is_not_said_to_be_settled_by_them():
    flipping = runs(range(100), range(100)), runs(range(100, 200), range(100, 200))
    broken = runs(range(1300), range(1300)), runs(range(1300), range(1300))
    for arms in (flipping, broken):
        found = decide.decide(*arms, decide.Rule(margin=0.03))
        assert (found.verdict, found.further_runs) == ("INCONCLUSIVE", None)
        assert "would settle" not in found.message


def test_answers_that_flip_both_ways_are_no_pass_though_the_mean_stays():
    found = decide.decide(runs(range(100), range(100)), runs(range(100, 200), range(100, 200)),
                          decide.Rule(margin=0.06))  # fmt: skip
    assert found.statistics["difference"] == 0
    assert found.verdict == "INCONCLUSIVE"
    assert "flip" in found.message


def test_flips_that_pristine_runs_have_among_themselves_pass():
    numbers = random.Random(0)
    noisy = [set(numbers.sample(range(N), 60)) for _ in range(24)]
    assert decide.decide(runs(*noisy[:12]), runs(*noisy[12:])).verdict == "PASS"


def test_more_unreadable_answers_are_a_regression_though_none_is_lost():
    """An answer that cannot be read counts as wrong, also where it was wrong before."""

    def arm(unread):
        wrong, marks = set(range(400)), {str(doc): doc < unread for doc in range(N)}
        return [run(f"run {i}", wrong, invalid=marks) for i in range(2)]

    assert decide.decide(arm(0), arm(10)).verdict == "PASS"
    found = decide.decide(arm(0), arm(60))
    assert found.verdict == "REGRESSION"
    assert "invalid" in found.message


def test_two_broken_arms_are_no_pass():
    found = decide.decide(runs(range(1300), range(1300)), runs(range(1300), range(1300)))
    assert found.verdict == "INCONCLUSIVE"
    assert "floor" in found.message


def test_different_questions_are_refused_by_name():
    with pytest.raises(Refused, match=r"1 only in run 1 \(1319\)"):
        decide.decide([*runs(()), run("run 1", n=N + 1)], runs(()))


@unhurried
@given(st.data())
def test_more_losses_never_make_a_verdict_better(data):
    order = ["REGRESSION", "INCONCLUSIVE", "PASS"]
    fewer = data.draw(st.sets(st.integers(0, 499), max_size=40))
    more = fewer | data.draw(st.sets(st.integers(0, 499), max_size=40))
    pristine = runs((), (), n=500)
    better, worse = (
        decide.decide(pristine, runs(each, each, n=500)).verdict for each in (fewer, more)
    )
    assert order.index(worse) <= order.index(better)


@unhurried
@given(losses=st.integers(0, 30), gains=st.integers(0, 30), repeats=st.integers(1, 3))
def test_equal_repeats_change_nothing(losses, gains, repeats):
    first = [set(range(losses))], [set(range(losses, losses + gains))]
    once = paired.paired(*([r.correct for r in runs(*each)] for each in first[::-1]))
    many = paired.paired(*([r.correct for r in runs(*each * repeats)] for each in first[::-1]))
    assert (many.losses, many.gains) == (losses, gains) == (once.losses, once.gains)
    assert many.lower_bound() == pytest.approx(once.lower_bound())


# The power that a simulation of this rule found (n = 1319): drops 0, 0.5, 1, 1.5, 2, 3 points by
# McNemar; margins 0.5, 1, 1.5, 2 points; answers for 80 % at margins 1, 1.5, 2.
SIMULATED = {
    0.01: ((0.02, 0.47, 1), (None, 0.97, 1, 1), (619, 275, 155)),
    0.02: ((0.04, 0.28, 0.79, 0.99, 1), (0.36, 0.83, 0.98, 1), (1237, 550, 310)),
    0.03: ((0.04, 0.22, 0.62, 0.94, 1, 1), (0.28, 0.68, 0.92, 0.99), (1855, 825, 464)),
    0.05: ((0.04, 0.18, 0.44, 0.76, 0.95, 1), (0.20, 0.50, 0.78, 0.95), (3092, 1374, 773)),
    0.13: ((0.04, 0.12, 0.24, 0.42, 0.61, 0.91), (0.13, 0.26, 0.45, 0.63), (8038, 3573, 2010)),
}


@pytest.mark.parametrize("share", SIMULATED, ids=lambda share: f"{share:.0%}")
def test_the_power_table_of_one_run_is_what_a_simulation_finds(share):
    flagged, passed, needed = SIMULATED[share]
    row = power.row(share, N, 1)
    assert row.flagged[: len(flagged)] == pytest.approx(flagged, abs=0.025)
    for found, expected in zip(row.passed, passed, strict=True):
        assert expected is None or found == pytest.approx(expected, abs=0.025)
    assert row.needed == needed


@pytest.mark.parametrize(("share", "drop", "margin"), [(0.02, 0.005, 0.005), (0.05, 0.01, 0.01)])
def test_the_power_table_of_two_runs_is_that_of_the_rule_itself(share, drop, margin):
    """What the table supposes, drawn run by run and question by question, and decided."""
    times = 200

    def chance(of, lost_for_good):
        numbers, n = np.random.default_rng(1), 0
        for _ in range(times):
            kinds = numbers.random(N)
            coins = kinds < 2 * (share - lost_for_good)
            fallen = kinds > 1 - lost_for_good
            right = numbers.random((4, N)) < np.where(coins, 0.5, 1.0)
            right[2:] &= ~fallen
            arms = [
                Run("run", dict(zip(map(str, range(N)), each, strict=True)))
                for each in right.tolist()
            ]
            n += of(paired.paired(*([r.correct for r in arm] for arm in (arms[:2], arms[2:]))))
        return n / times

    flagged = chance(lambda pair: pair.loss_p() < 0.05, drop)
    passed = chance(lambda pair: pair.lower_bound() > -margin, 0.0)
    near = 4 * math.sqrt(0.25 / times)
    assert power.flagged(N, 2, share, drop) == pytest.approx(flagged, abs=near)
    assert power.passed(N, 2, share, (margin,)) == pytest.approx((passed,), abs=near)


def test_more_runs_are_not_more_questions():
    """None of 100 lost is none of 100, though each was asked three times."""
    assert power.passed(100, 3, 0.01, (0.01,)) == (0.0,)
    assert power.needed(3, 0.01, 0.01) == 299
