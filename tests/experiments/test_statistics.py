"""Intervals against published values, exact cases and their own coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stepopsd.experiments.statistics import (
    Interval,
    macro_interval,
    paired_difference,
    panel_interval,
    student_quantile,
    success_by_kind,
    success_interval,
    success_matrix,
    verdict,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(107, 128, 0.76218, 0.89012), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (1, 2, 0.09453, 0.90547)],
)
def test_wilson_gives_known_limits(successes, trials, low, high):
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-5)
    assert interval.estimate == successes / trials
    assert interval.n == trials


def test_wilson_covers_the_rate_about_as_often_as_promised():
    rate, trials = 0.3, 40
    covered = sum(
        math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k)
        for k in range(trials + 1)
        if wilson_interval(k, trials).contains(rate)
    )
    assert 0.93 < covered < 0.97


def test_wilson_of_no_trials_knows_nothing():
    interval = wilson_interval(0, 0)
    assert math.isnan(interval.estimate)
    assert (interval.low, interval.high) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="successes must lie in"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_outside_its_range_is_refused(confidence):
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\), got"):
        wilson_interval(1, 2, confidence=confidence)


@pytest.mark.parametrize(
    ("freedom", "confidence", "quantile"),
    [(1, 0.95, 12.7062), (2, 0.95, 4.3027), (3, 0.95, 3.1824), (4, 0.99, 4.6041), (9, 0.95, 2.2622), (30, 0.9, 1.6973)],
)
def test_student_quantile_equals_the_tables(freedom, confidence, quantile):
    assert student_quantile(freedom, confidence) == pytest.approx(quantile, abs=1e-4)


def test_one_or_two_seeds_get_the_wilson_band_of_their_episodes():
    first, second = [True] * 6 + [False] * 4, [True] * 2 + [False] * 8
    assert success_interval([first]) == wilson_interval(6, 10)
    assert success_interval([first, second]) == wilson_interval(8, 20)


def test_three_seeds_get_the_student_band_over_seeds():
    runs = [[True] * k + [False] * (100 - k) for k in (20, 50, 80)]
    interval = success_interval(runs)
    half = 4.3027 * 0.3 / math.sqrt(3)
    assert interval.estimate == pytest.approx(0.5)
    assert interval.low == pytest.approx(max(0.0, 0.5 - half), abs=1e-4)
    assert interval.high == pytest.approx(min(1.0, 0.5 + half), abs=1e-4)


def test_seeds_that_agree_do_not_fake_certainty():
    runs = [[True] * 5 + [False] * 5] * 4
    assert success_interval(runs) == wilson_interval(20, 40)


def test_one_and_the_same_evaluation_three_times_is_no_more_than_once():
    flags, games = [True, False, True, True, False, False], ["a", "a", "b", "b", "c", "c"]
    once = panel_interval([flags[:2], flags[2:4], flags[4:]])
    thrice = success_interval([flags] * 3, games=[games] * 3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=0.02)
    alone = success_interval([flags] * 3)
    assert alone.high - alone.low < 0.7 * (thrice.high - thrice.low), "episodes taken for games of their own"
    assert success_interval([flags], games=[list("abcdef")]) == wilson_interval(3, 6)
    with pytest.raises(ValueError, match="games and outcomes must have equal lengths per run"):
        success_interval([flags], games=[games, games])


def test_mean_over_sets_gives_each_set_one_vote():
    kinds, flags = ["nq"] * 8 + ["bamboogle"] * 2, [True] * 8 + [False, True]
    games = [str(i) for i in range(10)]
    found = macro_interval([kinds], [flags], games=[games])
    parts = success_by_kind([kinds], [flags], games=[games])
    assert found.estimate == 0.75
    below = math.hypot(*(part.estimate - part.low for part in parts.values())) / 2
    assert found.low == pytest.approx(0.75 - below)
    assert found.n == 10
    apart = macro_interval([kinds] * 3, [[True] * 10, [False] * 10, flags])
    assert apart.low == 0.0, "three seeds that disagree"
    assert math.isnan(macro_interval([], []).estimate)


def test_rates_by_kind_count_each_kind_over_all_runs():
    kinds = [["heat", "cool", "heat"], ["heat", "cool", "cool"]]
    outcomes = [[True, False, True], [False, False, True]]
    table = success_by_kind(kinds, outcomes)
    assert list(table) == ["cool", "heat"]
    assert (table["heat"].n, table["heat"].estimate) == (3, pytest.approx(0.5))
    assert (table["cool"].n, table["cool"].estimate) == (3, pytest.approx(0.25))


def test_kinds_and_outcomes_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="equal lengths per run"):
        success_by_kind([["heat"]], [[True, False]])


def test_success_matrix_averages_samples_and_names_a_missing_game():
    run = {"a": [True, False], "b": [True, True]}
    assert success_matrix([run], ["b", "a"]).tolist() == [[1.0, 0.5]]
    with pytest.raises(ValueError, match=r"run 0 has no episode of 1 of the games, e\.g\. 'c'"):
        success_matrix([run], ["a", "c"])


def test_pairing_removes_what_games_do_to_both_methods():
    random = np.random.default_rng(0)
    hard = (random.random((1, 200)) < 0.5).astype(float)
    better = np.maximum(hard, (np.arange(200) % 10 == 0).astype(float)[None])
    paired = paired_difference(hard, better)
    shuffled = paired_difference(hard, better[:, random.permutation(200)])
    assert not paired.contains(0.0)
    assert shuffled.contains(0.0)
    assert paired.estimate == shuffled.estimate
    assert paired.half_width < shuffled.half_width / 2


def test_training_noise_alone_rarely_looks_like_a_difference():
    random = np.random.default_rng(5)
    games, trials = 100, 150
    false = 0
    for _ in range(trials):
        rates = np.clip(0.5 + random.normal(0, 0.1, size=(2, 3, 1)), 0, 1)  # the same method, six training runs
        baseline, candidate = (random.random((2, 3, games)) < rates).astype(float)
        false += not paired_difference(baseline, candidate, resamples=300).contains(0.0)
    assert false / trials < 0.09


def test_seeds_that_disagree_widen_the_difference():
    baseline = np.zeros((3, 50))
    agree = np.tile((np.arange(50) % 2 == 0).astype(float), (3, 1))
    disagree = np.stack([np.zeros(50), agree[0], np.ones(50)])
    narrow, wide = paired_difference(baseline, agree), paired_difference(baseline, disagree)
    assert narrow.estimate == wide.estimate == 0.5
    assert wide.half_width > 2 * narrow.half_width


def test_bootstrap_over_games_equals_the_normal_interval_for_many_games():
    random = np.random.default_rng(3)
    baseline, candidate = (random.random((2, 1, 1000)) < 0.5).astype(float)
    interval = paired_difference(baseline, candidate)
    half = 1.96 * (candidate - baseline).std() / math.sqrt(1000)
    assert interval.half_width == pytest.approx(half, rel=0.05)


def test_equal_seeds_give_equal_limits():
    random = np.random.default_rng(1)
    baseline, candidate = random.random((2, 2, 30))
    assert paired_difference(baseline, candidate) == paired_difference(baseline, candidate)


def test_no_games_in_common_gives_nan():
    assert math.isnan(paired_difference(np.zeros((1, 0)), np.zeros((1, 0))).estimate)


@pytest.mark.parametrize(
    ("baseline", "candidate", "message"),
    [
        (np.zeros((1, 3)), np.zeros((1, 4)), "must both be"),
        (np.zeros(3), np.zeros(3), "must both be"),
        (np.zeros((1, 2)), np.array([[0.0, np.nan]]), "must be finite"),
    ],
)
def test_unpairable_results_are_refused(baseline, candidate, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(baseline, candidate)


def speak(interval: Interval, seeds: int) -> str:
    return verdict(interval, candidate="StepOPSD", baseline="GRPO", panel="seen", seeds=seeds)


def test_verdict_says_plainly_when_the_interval_contains_zero():
    sentence = speak(Interval(0.03, -0.05, 0.11, 24), 3)
    assert "contains 0, so no difference is shown" in sentence
    assert "+3.0 points" in sentence
    assert "24 games × 3 seeds" in sentence
    assert "higher" not in sentence


@pytest.mark.parametrize(("seeds", "caveat"), [(1, "One seed is not evidence"), (2, "2 seeds are too few")])
def test_verdict_never_lets_one_or_two_seeds_pass_as_evidence(seeds, caveat):
    for interval in (Interval(0.2, 0.1, 0.3, 24), Interval(0.0, -0.1, 0.1, 24)):
        assert caveat in speak(interval, seeds)


def test_verdict_names_the_direction_when_zero_is_excluded():
    assert "StepOPSD is higher" in speak(Interval(0.2, 0.1, 0.3, 24), 3)
    assert "StepOPSD is lower" in speak(Interval(-0.2, -0.3, -0.1, 24), 3)


def test_verdict_of_equal_results_has_no_sign():
    sentence = speak(Interval(0.0, -0.0, 0.0, 24), 3)
    assert "0.0 points (95 % interval 0.0 to 0.0; 24 games × 3 seeds)" in sentence
    assert "equally well on every game" in sentence


def test_verdict_without_common_games_compares_nothing():
    assert "nothing can be compared" in speak(Interval(math.nan, -1.0, 1.0, 0), 1)


def test_panel_interval_with_one_episode_per_game_is_wilson():
    flags = [[True]] * 107 + [[False]] * 21
    assert panel_interval(flags) == wilson_interval(107, 128)
    assert panel_interval([[True]] * 5) == wilson_interval(5, 5)
    assert panel_interval([]).n == 0


def test_repeated_episodes_count_as_much_as_they_differ():
    games = [[True] * 8] * 10 + [[False] * 8] * 10
    alike = panel_interval(games)
    assert (alike.low, alike.high) == (wilson_interval(10, 20).low, wilson_interval(10, 20).high)
    assert alike.n == 160
    mixed = panel_interval([[True, False] * 4] * 20)
    assert (mixed.low, mixed.high) == (wilson_interval(80, 160).low, wilson_interval(80, 160).high)
    sure = panel_interval([[True] * 8] * 20)
    assert sure.low == wilson_interval(20, 20).low


def test_panel_interval_covers_the_rate_of_the_games_population():
    """Games with their own rates, four episodes each: about 95 of 100 intervals hold the population's rate."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        rates = rng.beta(0.6, 0.4, size=60)  # mean 0.6, most games easy or hopeless
        hits += panel_interval(rng.random((60, 4)) < rates[:, None]).contains(0.6)
    assert 0.92 <= hits / 400 <= 0.98


def test_differences_of_unbounded_figures_keep_their_student_limits():
    a, b = np.zeros((3, 5)), np.array([[-9.0] * 5, [-1.0] * 5, [-5.0] * 5])
    free = paired_difference(a, b, bounds=(-np.inf, np.inf))
    assert free.estimate == -5
    assert free.low < -9
    assert free.high > -1
