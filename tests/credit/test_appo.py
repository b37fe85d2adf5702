"""APPO: reward groups, scaling and branching rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepopsd import grpo_loss
from stepopsd.credit.appo import AppoFuture, branch_round, dual_group_advantage, scale_adv
from tests.credit.test_stepopsd import inputs, plain

REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0] + [1.0] * 11 + [0.0])
BRANCH = torch.arange(16) >= 4


def test_rewards_are_standardised_by_both_groups():
    prompts = torch.zeros(16, dtype=torch.int64)
    both = dual_group_advantage(REWARDS, BRANCH, prompts)
    assert both[:4].tolist() == pytest.approx([0.6508, -2.1583, -2.1583, 0.6508], abs=1e-4)
    own = dual_group_advantage(REWARDS, BRANCH, prompts, mode="own")
    assert own[:4].tolist() == pytest.approx([1, -1, -1, 1])
    assert both[4:].eq(0).all()


def test_groups_that_do_not_vary_are_left_out():
    prompts = torch.zeros(16, dtype=torch.int64)
    equal = REWARDS.clone()
    equal[4:] = 0.1 + 0.2
    own = dual_group_advantage(equal, BRANCH, prompts, mode="own")
    assert torch.equal(dual_group_advantage(equal, BRANCH, prompts), own)
    assert dual_group_advantage(torch.full((16,), 1 / 3), BRANCH, prompts).eq(0).all()
    alone = dual_group_advantage(REWARDS[:4], BRANCH[:4], prompts[:4])
    assert alone.tolist() == pytest.approx([1, -1, -1, 1])


def test_prompts_do_not_see_each_other():
    prompts = torch.arange(2).repeat_interleave(16)
    twice = dual_group_advantage(torch.cat((REWARDS, 1 - REWARDS)), BRANCH.repeat(2), prompts)
    torch.testing.assert_close(twice[16:], -twice[:16])


def test_branch_rows_give_no_gradient():
    advantages = dual_group_advantage(REWARDS, BRANCH, torch.zeros(16, dtype=torch.int64))
    logits = torch.randn(16, 5, 11, generator=torch.Generator().manual_seed(0)).requires_grad_()
    future = torch.full((16, 5), 1.1)
    ids = torch.zeros(16, 5, dtype=torch.int64)
    mask = torch.ones(16, 5, dtype=torch.bool)
    grpo_loss(logits, ids, scale_adv(advantages, future, 0.5), torch.full((16, 5), -2.4), mask=mask).loss.backward()
    assert logits.grad[4:].eq(0).all()
    assert logits.grad[:4].abs().sum((1, 2)).gt(0).all()


def test_on_policy_the_scaling_is_one_plus_b():
    x = inputs()
    result = AppoFuture(b=0.5).assign(x)
    assert torch.equal(result.advantages, plain(x) * 1.5)
    assert torch.equal(AppoFuture(b=0.5, center=True).assign(x).advantages, plain(x))


def test_a_policy_that_moved_changes_the_factors_within_their_bounds():
    x = inputs()
    moved = replace(x, current_logprobs=x.old_logprobs + 0.02 * torch.randn(4, 10))
    result = AppoFuture(b=0.5).assign(moved)
    inside = result.factors[x.response_mask]
    assert inside.min() >= 1.5
    assert inside.max() <= 1.6 + 1e-6
    assert inside.unique().numel() > 2
    assert AppoFuture.per_minibatch
    with pytest.raises(ValueError, match="b must be at least 0"):
        scale_adv(torch.ones(1), torch.ones(1, 1), -1.0)


def test_what_the_scaling_logs():
    x = inputs()
    moved = replace(x, current_logprobs=x.old_logprobs + 0.1 * torch.randn(4, 10))
    metrics = AppoFuture(b=0.5, half_life=4.0).assign(moved).metrics
    drift = torch.where(x.response_mask, moved.current_logprobs - x.old_logprobs, 0).double()
    sums = [sum(2 ** (-(j - t) / 4) * drift[:, j] for j in range(t, 10)) for t in range(10)]
    ahead = torch.stack(sums, 1)[x.response_mask]
    assert float(metrics["appo/log_ratio_std"]) == pytest.approx(float(ahead.std(unbiased=False)), rel=1e-4)
    clipped = ahead.exp().clamp(1, 1.2)
    assert float(metrics["appo/multiplier_mean"]) == pytest.approx(float((1 + 0.5 * clipped).mean()), rel=1e-5)
    assert float(metrics["appo/at_low"]) == pytest.approx(float((ahead <= 0).double().mean()))
    still = AppoFuture(b=0.5).assign(x).metrics
    assert (float(still["appo/log_ratio_std"]), float(still["appo/multiplier_mean"])) == (0, 1.5)


def tokens():
    rng = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 40, generator=rng) < 0.7
    old = -torch.rand(3, 40, generator=rng)
    return torch.rand(3, 40, generator=rng), mask, old, old + 0.03 * torch.randn(3, 40, generator=rng)


def test_rounds_differ_in_what_the_drift_is_measured_by():
    entropies, mask, old, new = tokens()
    moved = branch_round(entropies, mask, 3, when="minibatch", logprobs=new, reference_logprobs=old)
    lagged = branch_round(entropies, mask, 3, when="lagged", logprobs=new, reference_logprobs=old)
    first = branch_round(entropies, mask, 3, when="minibatch", logprobs=old, reference_logprobs=old)
    by_entropy = branch_round(entropies, mask, 3, when="rollout")
    assert torch.equal(moved.positions, lagged.positions)
    assert torch.equal(first.positions, by_entropy.positions)
    assert not torch.equal(moved.positions, first.positions)
    assert torch.equal(first.positions.view(3, 3), entropies.masked_fill(~mask, -1).topk(3).indices)
    assert moved.scores.isfinite().all()
    for x in (moved, first):
        assert mask[x.rows, x.positions].all(), "tool tokens are never chosen"


def test_scarce_candidates_are_filled_up_by_entropy():
    entropies, mask, old, new = tokens()
    x = branch_round(entropies, mask, 60, when="minibatch", logprobs=new, reference_logprobs=old)
    assert len(x.rows) == int(mask.sum())
    assert 0 < int(x.scores.isfinite().sum()) < len(x.rows)
    assert mask[x.rows, x.positions].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when": "step"}, "when must be one of minibatch, lagged, rollout, got 'step'"),
        ({"when": "minibatch"}, "logprobs and reference_logprobs must be given for when='minibatch'"),
        ({"when": "rollout", "logprobs": torch.zeros(3, 40)}, "must not be given for when='rollout'"),
    ],
)
def test_mistakes_are_named(options, message):
    entropies, mask, _, _ = tokens()
    with pytest.raises(ValueError, match=message):
        branch_round(entropies, mask, 2, **options)
    with pytest.raises(ValueError, match="mode must be one of eq6, own, got 'eq7'"):
        dual_group_advantage(REWARDS, BRANCH, torch.zeros(16, dtype=torch.int64), mode="eq7")
    with pytest.raises(ValueError, match="one shape"):
        dual_group_advantage(REWARDS, BRANCH[1:], torch.zeros(16, dtype=torch.int64))
