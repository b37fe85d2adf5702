"""The specification itself, against numbers worked out by hand and against torch's own log_softmax."""

from __future__ import annotations

import math

import pytest
import torch

from stepopsd.ops.reference import shape_reference, weight


def logit(p: float) -> list[float]:
    """Two logits whose first token has probability p."""
    return [math.log(p), math.log(1 - p)]


def test_one_token_by_hand() -> None:
    student, teacher = torch.tensor([logit(0.5)]), torch.tensor([logit(0.6)])
    got = shape_reference(student, teacher, torch.tensor([0]), torch.tensor([-2.0]), lambda_mix=0.5)
    delta = math.log(0.6) - math.log(0.5)  # 0.182: sigmoid stays inside the clip
    w = 2 / (1 + math.exp(delta))
    assert got.delta.item() == pytest.approx(delta, abs=1e-7)
    assert got.weights.item() == pytest.approx(w, abs=1e-7)
    assert got.advantages.item() == pytest.approx(-2.0 * (1 + 0.5 * (w - 1)), abs=1e-7)
    assert got.entropies is not None
    assert got.entropies[0].item() == pytest.approx(math.log(2), abs=1e-7)
    assert got.entropies[1].item() == pytest.approx(-0.6 * math.log(0.6) - 0.4 * math.log(0.4), abs=1e-7)


def test_two_steps_by_hand() -> None:
    # Δ = ln 3 and A > 0 clip at 1.2; Δ = 0 keeps 1: |Ã| = 1.2, 1.2, 1 with λ = 1
    gap = torch.tensor([math.log(3), math.log(3), 0.0])
    got = shape_reference(
        None,
        None,
        None,
        torch.ones(3),
        torch.tensor([0, 0, 1]),
        trajectory_ids=torch.zeros(3),
        student_logprobs=torch.full((3,), -2.0),
        teacher_logprobs=gap - 2,
        lambda_mix=1.0,
    )
    c0, c1 = 1.1 / (1.2 + 1e-6), 1.1 / (1.0 + 1e-6)
    assert got.step_scale.tolist() == pytest.approx([c0, c0, c1], abs=1e-6)
    assert got.advantages.tolist() == pytest.approx([1.2 * c0, 1.2 * c0, c1], abs=1e-6)
    stats = got.stats.as_dict()
    assert stats["at_high"] == pytest.approx(2 / 3)
    assert stats["steps"] == 2
    assert stats["delta_std"] == pytest.approx(math.log(3) * math.sqrt(2) / 3, abs=1e-6)


def test_step_means_weigh_steps_not_tokens() -> None:
    # |A| = 1 over nine tokens of step 0, 3 in the single token of step 1: the mean over steps is 2
    advantages = torch.tensor([1.0] * 9 + [3.0])
    zero = torch.zeros(10)
    got = shape_reference(
        None,
        None,
        None,
        advantages,
        torch.tensor([0] * 9 + [1]),
        trajectory_ids=zero,
        student_logprobs=zero,
        teacher_logprobs=zero,
    )
    assert got.step_scale.tolist() == pytest.approx([2.0] * 9 + [2 / 3], abs=1e-5)
    assert got.advantages.tolist() == pytest.approx([2.0] * 10, abs=1e-5)


@pytest.mark.parametrize(
    ("a", "delta", "fn", "want"),
    [
        (1.0, 0.1, "sigmoid", 2 / (1 + math.exp(-0.1))),
        (-1.0, 0.1, "sigmoid", 2 / (1 + math.exp(0.1))),
        (5.0, 0.1, "exp", math.exp(0.1)),
        (-5.0, 0.1, "exp", math.exp(-0.1)),
        (1.0, 1e4, "exp", 1.2),
        (1.0, -1e4, "sigmoid", 0.8),
        (-1.0, math.inf, "sigmoid", 0.8),
        (0.0, math.inf, "sigmoid", 1.0),
        (-0.0, -math.inf, "exp", 1.0),
    ],
)
def test_weight_follows_the_sign_of_the_advantage(a: float, delta: float, fn: str, want: float) -> None:
    assert weight(a, delta, 0.2, fn) == pytest.approx(want, abs=1e-12)


def test_temperature_divides_logits_first() -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 9, generator=rng, dtype=torch.float64) for _ in range(2))
    ids = torch.randint(9, (4,), generator=rng)
    got = shape_reference(student, teacher, ids, torch.ones(4), temperature=0.5)
    want = (teacher / 0.5).log_softmax(-1) - (student / 0.5).log_softmax(-1)
    torch.testing.assert_close(got.delta, want.gather(-1, ids[:, None])[:, 0])
