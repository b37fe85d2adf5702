"""StepOPSD: when the teacher counts, and what it may change."""

from __future__ import annotations

import pytest
import torch

from stepopsd.credit import CreditInputs, create
from stepopsd.credit.stepopsd import StepOpsd


def inputs(update=1, teacher=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (4, 10)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:, :2] = False
    steps = torch.tensor([[-1, -1, 0, 0, 0, -1, 1, 1, 1, -1]] * 4, dtype=torch.int32)
    old = -torch.rand(shape, generator=g) * 3
    gap = torch.randn(shape, generator=g)
    scores = torch.where(steps >= 0, old + gap, torch.nan)
    scores[3] = torch.nan  # never asked
    return CreditInputs(
        advantages=torch.tensor([1.0, -1.0, 0.0, 0.5]), response_mask=mask, step_ids=steps,
        trajectory_ids=torch.arange(4), old_logprobs=old * mask, teacher_logprobs=scores if teacher else None,
        update=update,
    )


def plain(x):
    return torch.where(x.response_mask, x.advantages[:, None], 0.0)


def test_mixing_decays_to_exactly_zero():
    method = StepOpsd(lambda_mix=0.2, lambda_decay_updates=50)
    assert method.mixing(1) == pytest.approx(0.2 * 0.98)
    assert method.mixing(50) == 0.0 == method.mixing(99)
    assert method.wants_teacher(49)
    assert not method.wants_teacher(50)
    assert StepOpsd(lambda_mix=0.0, diagnose_every=5).wants_teacher(10)
    assert StepOpsd(lambda_decay_updates=0).mixing(1000) == 0.2


def test_zero_lambda_gives_the_plain_advantages_bit_for_bit():
    x = inputs()
    result = StepOpsd(lambda_mix=0.0, diagnose_every=1).assign(x)
    assert torch.equal(result.advantages, plain(x))
    assert float(result.metrics["delta/std"]) > 0


def test_only_scored_tokens_move_and_signs_stay():
    x = inputs()
    result = StepOpsd(lambda_mix=0.5, alpha_clip=0.5).assign(x)
    moved = result.advantages != plain(x)
    scored = x.teacher_logprobs.isfinite() & (x.step_ids >= 0)
    assert moved[:2].any()
    assert not moved[~scored].any()
    assert not moved[2:].any()  # zero advantage; never asked
    assert torch.equal(result.advantages.sign(), plain(x).sign())


def test_step_means_are_equal_after_the_budget():
    x = inputs()
    result = StepOpsd(lambda_mix=1.0, alpha_clip=0.9).assign(x)
    a = result.advantages[0].abs()
    assert float(a[2:5].mean()) == pytest.approx(float(a[6:9].mean()), rel=1e-4)


def test_statistics_cover_scored_tokens_only():
    x = inputs()
    metrics = StepOpsd().assign(x).metrics
    gaps = (x.teacher_logprobs - x.old_logprobs)[x.teacher_logprobs.isfinite() & (x.step_ids >= 0)]
    assert metrics["delta/count"] == gaps.numel()
    assert float(metrics["delta/std"]) == pytest.approx(float(gaps.std(unbiased=False)), rel=1e-4)
    assert float(metrics["delta/median"]) == pytest.approx(float(gaps.median()), abs=0.2)


def test_without_teacher_scores_it_is_grpo():
    x = inputs(teacher=False)
    assert torch.equal(StepOpsd().assign(x).advantages, create("grpo", {}).assign(x).advantages)


def test_shuffled_teacher_keeps_the_gaps_but_not_their_places():
    x = inputs()
    real, control = StepOpsd().assign(x), StepOpsd(shuffle_teacher=True).assign(x)
    a, b = (r.tokens["delta"].flatten().sort().values for r in (real, control))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert not torch.equal(real.tokens["delta"], control.tokens["delta"])


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match="grpo, stepopsd, got 'magic'"):
        create("magic", {})
