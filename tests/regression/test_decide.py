"""Catches a verdict that the numbers do not bear: a wrong test, margin, pairing, count of runs."""

import itertools
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("scipy")

from ci.regression import decide, power
from ci.regression.errors import Refused
from ci.regression.questions import Run

N = 1319


def run(name, wrong=(), n=N, **columns) -> Run:
    wrong = set(wrong)
    return Run(name, {str(doc): doc not in wrong for doc in range(n)}, **columns)


def runs(*wrong, n=N):
    return [run(f"run {i}", each, n) for i, each in enumerate(wrong)]


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


def test_a_loss_that_chance_explains_in_less_than_one_case_in_twenty_is_the_limit():
    assert decide.decide(runs((), ()), runs(range(4), range(4))).verdict != "REGRESSION"  # 1/16
    assert decide.decide(runs((), ()), runs(range(5), range(5))).verdict == "REGRESSION"  # 1/32


@given(losses=st.integers(0, 60), gains=st.integers(0, 60))
def test_mcnemar_is_the_binomial_tail(losses, gains):
    tail = sum(math.comb(losses + gains, k) for k in range(losses, losses + gains + 1))
    assert decide.mcnemar(losses, gains) == pytest.approx(tail / 2 ** (losses + gains))


def test_holm_multiplies_the_smallest_by_all_and_never_turns_back():
    assert decide.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert decide.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_definition_rejects(p_values):
    rejected, left = set(), len(p_values)
    for index in sorted(range(left), key=p_values.__getitem__):
        if p_values[index] * left >= 0.05:
            break
        rejected.add(index)
        left -= 1
    adjusted = decide.holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p < 0.05} == rejected


def test_without_a_discordant_question_the_bound_is_exact():
    bound = decide.paired(*[[r.correct for r in runs(())] for _ in range(2)]).lower_bound
    assert bound == pytest.approx(-(1 - 0.05 ** (1 / N)))


def test_few_questions_pass_nothing_however_equal():
    """None of 100 lost excludes no loss under 3 points."""
    found = decide.decide(runs((), (), n=100), runs((), (), n=100))
    assert found.verdict == "INCONCLUSIVE"
    assert found.further_runs == 1  # 300 answers an arm are enough for 1 point: two runs are there


def test_as_many_further_runs_as_are_asked_for_settle_it():
    few = [set(range(i, 40, 4)) for i in range(4)]
    first = decide.decide(runs(few[0], few[1], n=300), runs(few[2], few[3], n=300))
    assert first.verdict == "INCONCLUSIVE"
    further = first.further_runs
    pristine = [few[i % 4] for i in range(2 + further)]
    patched = [few[(i + 2) % 4] for i in range(2 + further)]
    assert decide.decide(runs(*pristine, n=300), runs(*patched, n=300)).verdict == "PASS"


def test_a_noisy_server_gets_the_wider_margin():
    quiet = decide.decide(runs((), range(26)), runs((), ()))
    noisy = decide.decide(runs((), range(27)), runs((), ()))
    assert (quiet.statistics["margin"], noisy.statistics["margin"]) == (0.01, 0.015)


def test_one_pristine_run_passes_nothing_but_shows_a_regression():
    alone = decide.decide(runs(()), runs((), ()))
    assert alone.verdict == "INCONCLUSIVE"
    assert "second pristine run" in alone.message
    assert decide.decide(runs(()), runs(range(9))).verdict == "REGRESSION"


def test_answers_that_flip_both_ways_are_no_pass_though_the_mean_stays():
    found = decide.decide(runs(range(100), range(100)), runs(range(100, 200), range(100, 200)),
                          margin=0.05)  # fmt: skip
    assert found.statistics["difference"] == 0
    assert found.verdict == "INCONCLUSIVE"
    assert "flip" in found.message


def test_flips_that_pristine_runs_have_among_themselves_pass():
    numbers = random.Random(0)
    noisy = [set(numbers.sample(range(N), 60)) for _ in range(16)]
    assert decide.decide(runs(*noisy[:8]), runs(*noisy[8:])).verdict == "PASS"


def test_more_unreadable_answers_are_a_regression_though_none_is_lost():
    """An answer that cannot be read counts as wrong, also where it was wrong before."""

    def arm(unread):
        wrong, marks = set(range(200)), {str(doc): doc < unread for doc in range(N)}
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


def test_the_order_of_the_runs_does_not_matter():
    several = runs({1, 2}, {5}, range(30), {9, 10})
    verdicts = {
        json.dumps(
            decide.decide(list(pristine), runs({4}, range(20))).as_json()["statistics"]["mcnemar_p"]
        )
        for pristine in itertools.permutations(several)
    }
    assert len(verdicts) == 1


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


@given(losses=st.integers(0, 30), gains=st.integers(0, 30), repeats=st.integers(1, 3))
def test_equal_repeats_change_nothing(losses, gains, repeats):
    first = [set(range(losses))], [set(range(losses, losses + gains))]
    once = decide.paired(*([r.correct for r in runs(*each)] for each in first[::-1]))
    many = decide.paired(*([r.correct for r in runs(*each * repeats)] for each in first[::-1]))
    assert (many.losses, many.gains) == (losses, gains) == (once.losses, once.gains)
    assert many.lower_bound == pytest.approx(once.lower_bound)


# The power that a simulation of this rule found (n = 1319): drops 0, 0.5, 1, 1.5, 2, 3 points by
# McNemar; margins 0.5, 1, 1.5, 2 points; answers for 80 % at margins 1, 1.5, 2.
SIMULATED = {
    0.01: ((0.02, 0.47, 1), (None, 0.97, 1, 1), (619, 275, 155)),
    0.02: ((0.04, 0.28, 0.79, 0.99, 1), (0.36, 0.83, 0.98, 1), (1237, 550, 310)),
    0.03: ((0.04, 0.22, 0.62, 0.94, 1, 1), (0.28, 0.68, 0.92, 0.99), (1855, 825, 464)),
    0.05: ((0.04, 0.18, 0.44, 0.76, 0.95, 1), (0.20, 0.50, 0.78, 0.95), (3092, 1374, 773)),
    0.13: ((0.04, 0.12, 0.24, 0.42, 0.61, 0.91), (0.13, 0.26, 0.45, 0.63), (8038, 3573, 2010)),
}


@pytest.mark.parametrize("row", power.table(N), ids=lambda row: f"{row.discordance:.0%}")
def test_the_power_table_is_what_a_simulation_finds(row):
    flagged, passed, needed = SIMULATED[row.discordance]
    assert row.flagged[: len(flagged)] == pytest.approx(flagged, abs=0.025)
    for found, expected in zip(row.passed, passed, strict=True):
        assert expected is None or found == pytest.approx(expected, abs=0.025)
    assert row.needed == needed


def test_the_power_of_a_pass_is_that_of_the_rule_itself(seed):
    """The table's enumeration against decide, question by question."""
    numbers, share, margin, n, passes = random.Random(seed), 0.03, 0.015, 400, 0
    repeats = 400
    for _ in range(repeats):
        drawn = [numbers.random() for _ in range(n)]
        before = {doc for doc, x in enumerate(drawn) if x < share / 2}
        after = {doc for doc, x in enumerate(drawn) if share / 2 <= x < share}
        pair = decide.paired(*([r.correct for r in runs(each, n=n)] for each in (before, after)))
        passes += pair.lower_bound > -margin
    chance = power.passed(n, share, margin)
    assert abs(passes / repeats - chance) < 5 * math.sqrt(chance * (1 - chance) / repeats)


def test_one_of_many_configurations_has_to_stand_after_holm():
    """p = 1/32 in one of three: after Holm 3/32, so no regression, and no pass either."""
    bad = decide.decide(runs((), ()), runs(range(5), range(5))).as_json()
    good = decide.decide(runs((), ()), runs((), ())).as_json()
    assert decide.combine({"a": bad}).verdict == "REGRESSION"
    found = decide.combine({"a": bad, "b": good, "c": good})
    assert found.verdict == "INCONCLUSIVE"
    assert found.statistics["configurations"]["a"]["mcnemar_p_holm"] == pytest.approx(3 / 32)
    assert decide.combine({"b": good, "c": good}).verdict == "PASS"
    worse = decide.decide(runs((), ()), runs(range(9), range(9))).as_json()
    assert decide.combine({"a": worse, "b": good, "c": good}).verdict == "REGRESSION"
