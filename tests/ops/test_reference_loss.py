"""The specification of the policy losses against textbook forms and numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from stepopsd.ops.reference_loss import clipped_surrogate, k3_divergence, policy_loss_reference, sequence_ratio


def random_case(seed: int = 0, shape: tuple[int, int] = (4, 9)) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    new = torch.randn(shape, generator=g) - 2
    old = new + 0.4 * torch.randn(shape, generator=g)
    advantages = torch.randn(shape, generator=g)
    mask = torch.rand(shape, generator=g) > 0.3
    return new, old, advantages, mask


def test_equals_the_textbook_form() -> None:
    new, old, a, mask = random_case()
    out = clipped_surrogate(new, old, a, mask, clip_low=0.2, clip_high=0.28)
    ratio = (new - old).exp()
    want = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
    torch.testing.assert_close(out.loss[mask], want[mask])
    assert not out.loss[~mask].any()


def test_dual_clip_bounds_negative_advantages_only() -> None:
    new = torch.tensor([[2.0, 2.0]])
    old = torch.zeros(1, 2)
    a = torch.tensor([[-1.0, 1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert clipped_surrogate(new, old, a, mask).loss[0, 0] == pytest.approx(2.718281828**2, rel=1e-5)
    bounded = clipped_surrogate(new, old, a, mask, dual_clip=3.0)
    assert bounded.loss.squeeze().tolist() == pytest.approx([3.0, -1.2])
    assert bounded.clipped.tolist() == [[True, True]]


def test_first_step_gradient_is_minus_the_advantage() -> None:
    new, _, a, mask = random_case()
    new.requires_grad_()
    clipped_surrogate(new, new.detach(), a, mask).loss.sum().backward()
    torch.testing.assert_close(new.grad, torch.where(mask, -a, 0.0))


def test_masked_positions_may_hold_nan() -> None:
    new, old, a, mask = random_case()
    dirty = [torch.where(mask, t, torch.nan).requires_grad_(t is new) for t in (new, old, a)]
    loss = clipped_surrogate(*dirty, mask).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert dirty[0].grad is not None
    assert dirty[0].grad.isfinite().all()


def test_k3_is_never_negative_and_zero_at_equality() -> None:
    new, old, _, mask = random_case()
    assert (k3_divergence(new, old, mask) >= 0).all()
    assert not k3_divergence(new, new, mask).any()


def test_float64_stays_float64() -> None:
    new, old, a, mask = (x.double() if x.is_floating_point() else x for x in random_case())
    assert clipped_surrogate(new, old, a, mask).loss.dtype == torch.float64
    assert k3_divergence(new, old, mask).dtype == torch.float64
    assert clipped_surrogate(new.float(), old, a, mask).loss.dtype == torch.float32


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="one shape"):
        clipped_surrogate(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), torch.ones(1, 2, dtype=torch.bool))


def test_the_sequence_ratio_is_a_geometric_mean_whose_gradient_each_token_has_for_itself() -> None:
    new = torch.tensor([[-1.0, -2.0, 50.0]], requires_grad=True)
    old = torch.tensor([[-1.5, -1.0, torch.nan]])
    mask = torch.tensor([[True, True, False]])
    ratio = sequence_ratio(new, old, mask)
    want = 2.718281828**-0.25
    assert ratio[0, :2].tolist() == pytest.approx([want, want])
    (slope,) = torch.autograd.grad(ratio[0, 0], new)
    assert slope.tolist() == [pytest.approx([want, 0.0, 0.0])]


@pytest.mark.parametrize(
    ("aggregation", "want"),
    [("token_mean", -8 / 6), ("sequence_mean", -(4 / 2 + 4 / 4) / 2), ("sequence_sum", -4), ("dr_grpo", -8 / 16)],
)
def test_aggregations_by_hand(aggregation: str, want: float) -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    a = torch.tensor([[1.0, 3.0, 99.0, 99.0], [0.0, 0.0, 0.0, 4.0]])
    logprobs = torch.full((2, 4), -1.0)
    got = policy_loss_reference(
        logprobs, logprobs, a, mask, entropy=torch.zeros(2, 4), loss="grpo", clip_low=0.2, clip_high=0.2,
        aggregation=aggregation, budget=8,
    )  # fmt: skip
    assert got.item() == pytest.approx(want)
