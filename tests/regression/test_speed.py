"""Catches a speed-up or slow-down said of noise, and a slow-down that is not said."""

import random

import pytest

pytest.importorskip("scipy")

from ci.regression import speed
from ci.regression.errors import Refused
from ci.regression.throughput_cli import main

METRICS = tuple(speed.METRICS)


def point(ratio, seed=0, noise=0.003, repeats=3):
    """Both arms of one point; `ratio` patched : pristine in throughput, its inverse in time."""
    numbers = random.Random(seed)

    def values(middle):
        return [middle * (1 + numbers.uniform(-noise, noise)) for _ in range(repeats)]

    pristine = {metric: values(100.0) for metric in METRICS}
    patched = {m: values(100.0 * (ratio if speed.METRICS[m] else 1 / ratio)) for m in METRICS}
    return {"pristine": pristine, "patched": patched}


def test_more_tokens_and_less_time_are_both_faster():
    found = speed.decide({"p": point(1.06)})
    assert found.verdict == "PASS"
    for metric in METRICS:
        row = found.statistics["points"]["p"][metric]
        assert row["median"] == pytest.approx(1.06, abs=0.01)
        assert row["says"] == "faster"
    assert "faster: p" in found.message


def test_a_slow_down_is_a_regression_at_its_point():
    found = speed.decide({"quick": point(1.0), "slow": point(0.9)})
    assert found.verdict == "REGRESSION"
    assert "slow: 0.90" in found.message
    assert "quick" not in found.message


def test_a_gain_below_the_noise_is_not_named():
    """1.5 % in 3 repeats, each within 0.3 %: significant, and still what servers differ by."""
    found = speed.decide({"p": point(1.015)})
    assert found.statistics["points"]["p"][speed.THROUGHPUT]["says"] == "below the noise"
    assert "no gain above the noise" in found.message


def test_noise_is_twice_the_spread_of_the_pristine_arm():
    pristine = [98.0, 100.0, 102.0]
    found = speed.ratio(pristine, [value * 1.03 for value in pristine], True)
    assert found.noise == pytest.approx(0.04)
    assert found.says == "below the noise"  # of one standard deviation it would be above
    assert speed.ratio(pristine, [value * 1.05 for value in pristine], True).says == "faster"


def test_a_noisy_server_gives_no_verdict_and_asks_for_repeats():
    found = speed.decide({"p": point(1.0, noise=0.1)})
    assert found.verdict == "INCONCLUSIVE"
    assert found.further_runs > 3


def test_the_order_of_repeats_counts_since_they_are_pairs():
    """A machine that slows down by half over the day: each pair is even."""
    drift = [100.0, 75.0, 50.0]
    even = speed.ratio(drift, [value * 1.001 for value in drift], True)
    assert even.low == pytest.approx(1.001, abs=1e-6)
    crossed = speed.ratio(drift, drift[::-1], True)
    assert crossed.low < 0.6


def test_the_interval_holds_the_true_ratio_as_often_as_it_says(seed):
    numbers, held, rounds = random.Random(seed), 0, 400
    for _ in range(rounds):
        arms = point(1.03, numbers.random(), noise=0.02, repeats=4)
        found = speed.ratio(arms["pristine"][METRICS[0]], arms["patched"][METRICS[0]], True)
        held += found.low <= 1.03 <= found.high
    assert held / rounds > 0.90


def test_too_few_or_impossible_measurements_are_refused():
    for pristine, patched in (([1, 1], [1, 1]), ([1, 1, 1], [1, 1]), ([1, 1, 0], [1, 1, 1])):
        with pytest.raises(Refused):
            speed.ratio(pristine, patched, True)
    with pytest.raises(Refused):
        speed.decide({})


def test_the_workloads_of_the_pull_requests_are_the_default(capsys):
    given = [
        "run",
        "--preset",
        "deepseek-v3.2",
        "--release",
        "0.5.9",
        "--arch",
        "gfx942",
        "--dry-run",
    ]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "1024/1024 c4" in said
    assert "8192/1024 c64" in said


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--repeats", "2"), "3 are the fewest"),
        (("--concurrency", "4,8,4"), "1024/1024 c4, 8192/1024 c4: twice"),
        (("--lengths", "16/4,16/4", "--concurrency", "2"), "16/4 c2: twice"),
    ],
)
@pytest.mark.parametrize("how", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_what_cannot_be_measured_is_refused_before_anything_is_begun(
    given, sentence, how, tmp_path, capsys
):
    whole = ["run", "--preset", "deepseek-v3.2", "--release", "0.5.9", "--arch", "gfx942"]
    assert main([*whole, *given, *how, "--output", str(tmp_path / "t.json")]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
