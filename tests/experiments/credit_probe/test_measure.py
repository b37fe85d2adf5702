"""The probe's figures on credit whose quality is known."""

from __future__ import annotations

import numpy as np
import pytest

from stepopsd.experiments.credit_probe.measure import Credited, agreement, agreement_gain, decisive_share


def rows(assign, groups=12, members=4, turns=5, seed=0):
    """Episodes of ``turns`` tokens, the deciding one different in each group; ``assign(outcome, truth, rng)``."""
    rng = np.random.default_rng(seed)
    made = []
    for group in range(groups):
        decisive = np.arange(turns) == group % turns
        for member in range(members):
            outcome = 1.0 if member % 2 else -1.0
            truth = np.where(decisive, outcome / 2, 0.0)
            made.append(Credited(group, assign(outcome, truth, rng), decisive, truth))
    return made


def test_perfect_credit():
    made = rows(lambda outcome, truth, rng: 3 * truth)
    assert decisive_share(made).estimate == pytest.approx(1)
    assert agreement(made).estimate == pytest.approx(1)


def test_one_number_per_episode_puts_an_equal_share_on_every_turn():
    made = rows(lambda outcome, truth, rng: np.full(5, outcome))
    share, match = decisive_share(made), agreement(made)
    assert share.estimate == pytest.approx(1 / 5)
    assert share.contains(1 / 5)
    # corr of ±1 everywhere with ±½ on one of five tokens
    assert match.estimate == pytest.approx(1 / np.sqrt(5))
    assert match.n == 12


def test_noise_agrees_with_nothing_and_its_interval_says_so():
    match = agreement(rows(lambda outcome, truth, rng: rng.normal(size=5), groups=40))
    assert match.contains(0)
    assert match.half_width < 0.2


def test_reversed_credit_is_negative():
    assert agreement(rows(lambda outcome, truth, rng: -truth)).estimate == pytest.approx(-1)


def test_tokens_whose_truth_is_unknown_do_not_count():
    made = rows(lambda outcome, truth, rng: truth)
    made[0].truth[:] = np.nan
    made[0].advantages[:] = 100.0
    assert agreement(made).estimate == pytest.approx(1)


def test_without_any_advantage_there_is_no_figure():
    made = rows(lambda outcome, truth, rng: np.zeros(5))
    assert np.isnan(decisive_share(made).estimate)
    assert np.isnan(agreement(made).estimate)


def test_gain_over_another_method_is_of_the_same_games():
    even = rows(lambda outcome, truth, rng: np.full(5, outcome))
    right = rows(lambda outcome, truth, rng: truth)
    gain = agreement_gain(right, even)
    assert gain.estimate == pytest.approx(1 - 1 / np.sqrt(5))
    assert gain.half_width < 1e-9, "drawn together, both are the same in every draw"
    assert agreement_gain(even, even).estimate == 0
    with pytest.raises(ValueError, match="same groups"):
        agreement_gain(right, even[4:])


def test_intervals_cover_the_share_of_the_population():
    """Nominal 95 % over groups, on credit whose expectation is known."""
    covered = 0
    for seed in range(120):
        made = rows(lambda o, t, rng: rng.exponential(size=5) * o, groups=30, members=2, seed=seed)
        covered += decisive_share(made).contains(1 / 5)
    assert 0.88 <= covered / 120 <= 1.0
