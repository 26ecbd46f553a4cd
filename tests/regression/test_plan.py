"""Catches a look that spends more than its share, and noise of starts or columns that pass."""

import itertools
import json

import pytest

pytest.importorskip("scipy")

import numpy as np

from ci.regression import decide, paired, plan
from ci.regression.decide import Rule
from ci.regression.starts import Starts, known, of_runs, pooled
from tests.regression.drawn import N, run, runs

NOTHING_PASSES = 1e-9  # as a margin


def lasting(lost, look):
    """Runs of both arms up to a look, of which the patched ones never answer `lost` questions."""
    count = plan.LOOKS[look]
    return runs(*[()] * count), runs(*[range(lost)] * count)


def test_what_the_looks_may_spend_is_all_of_the_error_and_no_more():
    for shares in (plan.LOSS_SHARES, plan.PASS_SHARES):
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0
    assert sum(plan.WEIGHTS.values()) == pytest.approx(1)


@pytest.mark.parametrize("family", [1, 38])
@pytest.mark.parametrize("look", range(len(plan.LOOKS)))
def test_a_look_finds_what_chance_gives_in_less_than_its_share_and_nothing_else(look, family):
    """`lost` questions for good and none gained: by chance in 2^-lost of cases."""
    share = 0.05 * 0.9 * plan.LOSS_SHARES[look] / family
    lost = int(np.ceil(-np.log2(share)))
    rule = Rule(margin=NOTHING_PASSES, family=family)
    assert decide.decide(*lasting(lost - 1, look), rule).verdict == "INCONCLUSIVE"
    found = decide.decide(*lasting(lost, look), rule)
    assert found.verdict == "REGRESSION"
    assert found.statistics["p"] == pytest.approx(2.0**-lost / 0.9 / plan.LOSS_SHARES[look])


def test_the_first_verdict_stands_whatever_comes_later():
    """Who runs on after a REGRESSION gets no PASS by it."""
    bad = [range(60)] * 2
    four = runs(*[()] * 4)
    assert decide.decide(four, runs(*bad, (), ())).verdict == "REGRESSION"
    assert decide.decide(four, runs((), (), *bad)).verdict == "PASS"


def test_runs_between_two_looks_wait_for_the_next():
    pristine, patched = [(), range(9)], [range(9, 30), range(30, 50)]
    two = decide.decide(runs(*pristine), runs(*patched))
    more = decide.decide(runs(*pristine, ()), runs(*patched, range(300)))
    assert (two.verdict, more.verdict) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert two.statistics["p"] == more.statistics["p"]
    assert (two.further_runs, more.further_runs) == (2, 2)
    assert "the plan looks again after 4" in two.message


@pytest.mark.parametrize(("pristine", "patched"), [(1, 1), (1, 4), (3, 1)])
def test_before_the_first_look_there_is_no_verdict(pristine, patched):
    """The noise of an arm that ran once is not known."""
    found = decide.decide(runs(*[()] * pristine), runs(*[range(300)] * patched))
    assert (found.verdict, found.further_runs) == ("INCONCLUSIVE", 1)
    assert "the first look is after 2 runs of each arm" in found.message


def test_the_plan_ends_and_says_so():
    numbers = np.random.default_rng(0)
    noisy = [np.flatnonzero(numbers.random(300) < 0.5) for _ in range(24)]
    found = decide.decide(runs(*noisy[:12]), runs(*noisy[12:]), Rule(margin=0.001))
    assert (found.verdict, found.further_runs) == ("INCONCLUSIVE", None)
    assert "the plan ends after 12" in found.message


def test_a_margin_is_what_was_asked_for_however_noisy_the_server_is():
    """A wider one for noise would pass a loss of a point just where it is hard to see."""
    assert decide.decide(runs((), range(80)), runs((), ())).statistics["margin"] == 0.01


def test_the_order_of_the_runs_within_a_look_does_not_matter():
    arms = runs({1, 2}, range(30)), runs({4}, range(20))
    orders = itertools.product(*(itertools.permutations(arm) for arm in arms))
    found = {json.dumps(decide.decide(*each).statistics["looks"][0]) for each in orders}
    assert len(found) == 1


def test_a_question_is_paired_by_its_id_and_not_by_its_place():
    """One arm's log is in another order than the other's."""
    answers = {str(doc): doc >= 30 for doc in range(N)}
    turned = dict(reversed(answers.items()))
    difference = paired.paired([answers, answers], [turned, answers])
    assert (difference.losses, difference.gains, difference.mean) == (0, 0, 0)


def test_fifty_lost_and_fifty_gained_for_good_are_no_pass():
    """More than the allowance: half of the flips of pristine runs are losses, not all of them."""
    pristine, patched = runs(*[range(50)] * 12), runs(*[range(50, 100)] * 12)
    found = decide.decide(pristine, patched, Rule(margin=0.03))
    assert found.verdict == "INCONCLUSIVE"
    assert "flip between the arms" in found.message


@pytest.mark.parametrize(("lost", "verdict"), [(45, "INCONCLUSIVE"), (12, "PASS")])
def test_half_of_what_pristine_runs_flip_explains_losses_and_no_more(lost, verdict):
    """Runs of both arms differ in 60 questions; `lost` more are lost, and as many gained."""

    def arm(always):
        return runs(*[[*range(half, 60, 2), *always] for half in (0, 1)] * 6)

    found = decide.decide(
        arm(range(100, 100 + lost)), arm(range(200, 200 + lost)), Rule(margin=0.05)
    )
    assert found.verdict == verdict, found.message


# Noise that a whole run shares --------------------------------------------------------------------


def test_pristine_runs_show_what_a_start_shifts():
    """Half of 40 questions wrong by chance, and 13 more of them in every other start."""
    numbers = np.random.default_rng(1)

    def starts(shift):
        return of_runs(
            [
                run("", np.flatnonzero(numbers.random(40) < 0.5 + shift * (i % 2))).correct
                for i in range(200)
            ]
        )

    assert starts(0.0).deviation < 0.0006
    assert not starts(0.0).seen
    assert starts(13 / 40).deviation == pytest.approx(13 / 2 / N, rel=0.2)
    assert starts(13 / 40).seen


def test_of_many_comparisons_each_counts_by_its_degrees_of_freedom():
    found = pooled([Starts(4.0, 1.0, 1), Starts(1.0, 2.0, 3), Starts()])
    assert (found.between, found.within, found.freedom) == (7 / 4, 7 / 4, 4)


def test_starts_that_differ_by_more_than_their_questions_widen_bound_and_p():
    steady, shaky = Starts(1e-6, 1e-6, 3), Starts(1e-6 + 0.005**2, 1e-6, 3)
    noise = paired.Paired({-4: 8, 0: 1300, 4: 11}, 4)
    assert noise.lower_bound(0.05, shaky, 4) < noise.lower_bound(0.05, steady, 4) - 0.003
    loss = paired.Paired({-4: 20, 0: 1299}, 4)
    assert loss.loss_p(steady, 4) == paired.sign_flips(loss.counts)
    assert loss.loss_p(shaky, 4) > 100 * loss.loss_p(steady, 4)
    few = paired.Paired({-4: 2, 0: 1317}, 4)
    assert few.lower_bound(0.05, shaky, 4) < few.lower_bound(0.05, steady, 4)


def test_where_starts_dominate_more_starts_are_asked_for_and_not_more_questions():
    pristine, patched = runs(range(20), range(40)), runs(range(21), range(41))
    found = decide.decide(pristine, patched)
    assert (found.verdict, found.further_runs) == ("INCONCLUSIVE", 2)
    assert "starts of each arm settle it" in found.message
    assert "more questions do not" in found.message
    assert found.statistics["start_noise"] > 0.005


def test_start_noise_that_a_family_has_measured_counts_instead():
    arms = runs(range(9), range(9)), runs(range(9), range(9))
    assert decide.decide(*arms).verdict == "PASS"
    told = decide.decide(*arms, Rule(starts=known(0.01)))
    assert told.verdict == "INCONCLUSIVE"
    assert told.statistics["start_noise"] == pytest.approx(0.01)


# Columns of the logs ------------------------------------------------------------------------------


def told(name, count, wrong=()):
    column = {str(doc): doc < count for doc in range(N)}
    return [run(f"run {i}", wrong, **{name: column}) for i in range(2)]


@pytest.mark.parametrize("name", ["invalid", "truncated"])
def test_what_one_arm_alone_tells_is_no_pass(name):
    """A patched arm that is all cut off, beside logs that lack the column."""
    found = decide.decide(runs((), ()), told(name, N))
    assert found.verdict == "INCONCLUSIVE"
    assert f"{name} answers are told by some logs alone" in found.message
    assert decide.decide(told(name, 0), runs((), ())).verdict == "INCONCLUSIVE"
    assert decide.decide(told(name, 0), told(name, 0)).verdict == "PASS"


@pytest.mark.parametrize("name", ["invalid", "truncated"])
def test_more_of_them_in_the_patched_arm_are_a_regression_by_their_share(name):
    wrong = range(400)
    assert decide.decide(told(name, 0, wrong), told(name, 10, wrong)).verdict == "PASS"
    found = decide.decide(told(name, 0, wrong), told(name, 60, wrong))
    assert found.verdict == "REGRESSION"
    assert f"{name} answers: {60 / N:.2%} patched, 0.00% pristine" in found.message


def test_answers_without_a_number_in_both_arms_are_the_setting_and_not_the_model():
    found = decide.decide(told("invalid", 66), told("invalid", 66))
    assert (found.verdict, found.further_runs) == ("INCONCLUSIVE", None)
    assert "5.00% of the answers of the pristine arm hold no number" in found.message
    assert decide.decide(told("invalid", 30), told("invalid", 30)).verdict == "PASS"
