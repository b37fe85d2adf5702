"""Group statistics."""

from __future__ import annotations

import pytest
import torch

from stepopsd.credit.grpo import group_normalize


def test_rows_and_trajectories_vote_differently():
    # four successes of 15 turns, four failures of 50 turns, reward 1 and 0
    lengths = [15] * 4 + [50] * 4
    rewards = torch.cat([torch.full((n,), float(i < 4)) for i, n in enumerate(lengths)])
    trajectories = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    groups = torch.zeros_like(trajectories)
    by_row = group_normalize(rewards, groups, trajectories, statistics="row")
    assert by_row.max() == pytest.approx(1.82, abs=0.01)
    assert by_row.min() == pytest.approx(-0.57, abs=0.03)
    by_trajectory = group_normalize(rewards, groups, trajectories, statistics="trajectory")
    assert by_trajectory.max() == pytest.approx(0.5 / (2 / 7) ** 0.5, rel=1e-4)
    assert by_trajectory.min() == -by_trajectory.max()


@pytest.mark.parametrize("value", [0.1, 10.0, 1 / 3])
def test_equal_rewards_give_exactly_zero(value):
    rewards = torch.full((7,), value)
    out = group_normalize(rewards, torch.zeros(7, dtype=torch.int64), torch.arange(7))
    assert torch.equal(out, torch.zeros(7))


def test_groups_do_not_see_each_other():
    rewards = torch.tensor([1.0, 0.0, 5.0, 5.0])
    groups = torch.tensor([0, 0, 1, 1])
    out = group_normalize(rewards, groups, torch.arange(4))
    assert out.tolist() == pytest.approx([0.7071, -0.7071, 0.0, 0.0], abs=1e-4)


def test_without_std_the_advantage_is_centred_only():
    out = group_normalize(
        torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64), torch.arange(4), divide_by_std=False
    )
    assert out.tolist() == [0.75, -0.25, -0.25, -0.25]


def test_mistakes_are_named():
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="statistics must be one of"):
        group_normalize(torch.zeros(1), one, one, statistics="step")
    with pytest.raises(ValueError, match="one shape"):
        group_normalize(torch.zeros(2), one, one)


@pytest.mark.parametrize("statistics", ["row", "trajectory"])
def test_the_order_of_the_rows_does_not_matter(statistics):
    g = torch.Generator().manual_seed(0)
    rewards, groups = torch.randn(12, generator=g), torch.randint(3, (12,), generator=g)
    trajectories = groups * 10 + torch.randint(3, (12,), generator=g)
    order = torch.randperm(12, generator=g)
    mixed = group_normalize(rewards[order], groups[order], trajectories[order], statistics=statistics)
    there = group_normalize(rewards, groups, trajectories, statistics=statistics)
    torch.testing.assert_close(mixed, there[order], atol=1e-6, rtol=1e-6)
