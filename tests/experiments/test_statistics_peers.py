"""Our intervals against scipy's and statsmodels' on known cases, and how often they hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stepopsd.experiments.statistics import (
    Interval,
    detectable,
    paired_difference,
    panel_interval,
    student_quantile,
    success_interval,
    wilson_interval,
)
from tests.extras import missing

stats = pytest.importorskip("scipy.stats", reason=missing("scipy"))
proportion = pytest.importorskip("statsmodels.stats.proportion", reason=missing("statsmodels"))


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (3, 7), (54, 128), (107, 128), (128, 128), (900, 51_713)])
def test_wilson_is_statsmodels(successes, trials, confidence):
    ours = wilson_interval(successes, trials, confidence=confidence)
    theirs = proportion.proportion_confint(successes, trials, alpha=1 - confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 101])
def test_student_quantile_is_scipys(freedom, confidence):
    assert student_quantile(freedom, confidence) == pytest.approx(stats.t.ppf(0.5 + confidence / 2, freedom), rel=1e-9)


def test_band_over_seeds_is_scipys_student_interval():
    runs = [[True] * won + [False] * (40 - won) for won in (8, 20, 31)]
    rates = np.array([0.2, 0.5, 0.775])
    low, high = stats.t.interval(0.95, 2, loc=rates.mean(), scale=stats.sem(rates))
    band = success_interval(runs)
    assert (band.low, band.high) == pytest.approx((max(0.0, low), min(1.0, high)), abs=1e-9)


def test_bootstrap_over_games_is_scipys():
    random = np.random.default_rng(11)
    baseline, candidate = random.random((2, 1, 150)) < [[[0.4]], [[0.6]]]
    ours = paired_difference(baseline.astype(float), candidate.astype(float), resamples=20_000)
    difference = (candidate.astype(float) - baseline)[0]
    theirs = stats.bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_detectable_difference_has_the_power_that_statsmodels_gives_it():
    from statsmodels.stats.power import normal_power

    games, spread = 134, 0.6
    half = stats.norm.ppf(0.975) * spread / math.sqrt(games)
    shown = detectable(Interval(0.0, -half, half, games))
    assert normal_power(shown / spread, games, 0.05) == pytest.approx(0.8, abs=1e-4)


def _covered(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([interval.contains(truth) for interval in intervals]))


def test_paired_difference_over_games_covers_the_population_as_often_as_promised():
    random = np.random.default_rng(0)
    intervals = []
    for _ in range(400):
        ease = random.beta(1.2, 1.2, size=120)  # games differ, and both methods feel it
        lift = np.clip(ease + 0.1, 0, 1)
        sides = [(random.random((1, 120)) < rate).astype(float) for rate in (ease, lift)]
        intervals.append(paired_difference(*sides, resamples=400))
    ease = np.random.default_rng(1).beta(1.2, 1.2, size=2_000_000)
    truth = float((np.clip(ease + 0.1, 0, 1) - ease).mean())
    assert 0.92 < _covered(intervals, truth) < 0.98


@pytest.mark.parametrize("seeds", [3, 5])
def test_paired_difference_over_seeds_and_games_covers_at_least_as_often_as_promised(seeds):
    """Training runs and games both vary: the limits must hold for other seeds and other games."""
    random = np.random.default_rng(seeds)
    intervals = []
    for _ in range(300):
        ease = random.normal(0.0, 0.15, size=(1, 1, 100))
        run = random.normal(0.0, 0.08, size=(2, seeds, 1))
        rates = np.clip(np.array([0.45, 0.55]).reshape(2, 1, 1) + ease + run, 0, 1)
        baseline, candidate = (random.random(rates.shape) < rates).astype(float)
        intervals.append(paired_difference(baseline, candidate, resamples=300))
    assert _covered(intervals, 0.1) > 0.93


def test_panel_interval_covers_when_games_are_played_four_times():
    random = np.random.default_rng(2)
    intervals = []
    for _ in range(600):
        rates = random.beta(0.6, 0.9, size=90)
        intervals.append(panel_interval((random.random((90, 4)) < rates[:, None]).tolist()))
    assert 0.92 < _covered(intervals, 0.4) < 0.98
    # As if they were 360 games, it would not: the wilful mistake that the cluster is there for.
    naive = [wilson_interval(round(i.estimate * 360), 360) for i in intervals]
    assert _covered(naive, 0.4) < 0.85
