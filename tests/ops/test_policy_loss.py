"""The surrogate against its textbook form, and aggregations that survive micro-batching."""

from __future__ import annotations

import pytest
import torch

from stepopsd.ops.policy_loss import AGGREGATIONS, aggregation_weights, clipped_surrogate, k3_divergence


def random_case(seed=0, shape=(4, 9)):
    g = torch.Generator().manual_seed(seed)
    new = torch.randn(shape, generator=g) - 2
    old = new + 0.4 * torch.randn(shape, generator=g)
    advantages = torch.randn(shape, generator=g)
    mask = torch.rand(shape, generator=g) > 0.3
    return new, old, advantages, mask


def test_equals_the_textbook_form():
    new, old, a, mask = random_case()
    out = clipped_surrogate(new, old, a, mask, clip_low=0.2, clip_high=0.28)
    ratio = (new - old).exp()
    want = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
    torch.testing.assert_close(out.loss[mask], want[mask])
    assert not out.loss[~mask].any()


def test_dual_clip_bounds_negative_advantages_only():
    new = torch.tensor([[2.0, 2.0]])
    old = torch.zeros(1, 2)
    a = torch.tensor([[-1.0, 1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert clipped_surrogate(new, old, a, mask).loss[0, 0] == pytest.approx(2.718281828**2, rel=1e-5)
    bounded = clipped_surrogate(new, old, a, mask, dual_clip=3.0)
    assert bounded.loss.squeeze().tolist() == pytest.approx([3.0, -1.2])
    assert bounded.clipped.tolist() == [[True, True]]


def test_first_step_gradient_is_minus_the_advantage():
    new, _, a, mask = random_case()
    new.requires_grad_()
    clipped_surrogate(new, new.detach(), a, mask).loss.sum().backward()
    torch.testing.assert_close(new.grad, torch.where(mask, -a, 0.0))


def test_masked_positions_may_hold_nan():
    new, old, a, mask = random_case()
    dirty = [torch.where(mask, t, torch.nan).requires_grad_(t is new) for t in (new, old, a)]
    loss = clipped_surrogate(*dirty, mask).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert dirty[0].grad.isfinite().all()


def test_k3_is_never_negative_and_zero_at_equality():
    new, old, _, mask = random_case()
    assert (k3_divergence(new, old, mask) >= 0).all()
    assert not k3_divergence(new, new, mask).any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations(aggregation):
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    terms = torch.tensor([[1.0, 3.0, 99.0, 99.0], [0.0, 0.0, 0.0, 4.0]])
    got = (aggregation_weights(mask, aggregation, budget=8) * terms).sum()
    want = {"token_mean": 8 / 6, "sequence_mean": (2 + 1) / 2, "sequence_sum": 8 / 2, "dr_grpo": 8 / 16}
    assert float(got) == pytest.approx(want[aggregation])


def test_mistakes_are_named():
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="aggregation must be one of"):
        aggregation_weights(mask, "mean")
    with pytest.raises(ValueError, match="budget"):
        aggregation_weights(mask, "dr_grpo")
    with pytest.raises(ValueError, match="one shape"):
        clipped_surrogate(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), mask)
