"""StepOPSD: when the teacher counts, and what it may change."""

from __future__ import annotations

import pytest
import torch

from stepopsd.credit import CreditInputs, create
from stepopsd.credit.grpo import group_normalize
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


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"one of .*grpo, .*stepopsd, got 'magic'"):
        create("magic", {})


def penalty_rows(update):
    """A group in which all eight members won with 20 one-turn rows each; four of the 160 turns were invalid."""
    trajectories = torch.arange(8).repeat_interleave(20)
    invalid = torch.zeros(160, dtype=torch.bool)
    invalid[[3, 27, 50, 71]] = True  # in the first four trajectories
    rewards = 10.0 - 0.1 * invalid
    advantages = group_normalize(rewards, torch.zeros(160, dtype=torch.int64), trajectories, statistics="row")
    shape = (160, 3)
    logprobs = torch.full(shape, -1.0)
    x = CreditInputs(
        advantages=advantages, response_mask=torch.ones(shape, dtype=torch.bool),
        step_ids=(torch.arange(160) % 20)[:, None].expand(shape).to(torch.int32), trajectory_ids=trajectories,
        old_logprobs=logprobs, teacher_logprobs=logprobs.clone(), update=update,
    )  # fmt: skip
    return x, invalid, trajectories < 4


def test_literal_budget_halves_penalties_and_doubles_their_neighbours():
    """What the budget does to penalty rows is far larger than the teacher's few percent, which is 0 here."""
    x, invalid, penalised = penalty_rows(update=1)
    valid_rows = penalised & ~invalid
    assert float(x.advantages[valid_rows].mean()) == pytest.approx(0.16, abs=0.005)
    assert float(x.advantages[invalid].mean()) == pytest.approx(-6.2, abs=0.05)
    factors = {
        norm: StepOpsd(step_norm=norm).assign(x).advantages[:, 0] / x.advantages
        for norm in ("equal_step_mean_abs", "equal_step_ratio", "none")
    }
    literal = factors["equal_step_mean_abs"]
    torch.testing.assert_close(literal[valid_rows], torch.full((76,), 2.0))
    torch.testing.assert_close(literal[invalid], torch.full((4,), 0.5))
    torch.testing.assert_close(literal[~penalised], torch.ones(80), atol=1e-4, rtol=0)
    for norm in ("equal_step_ratio", "none"):
        torch.testing.assert_close(factors[norm], torch.ones(160), atol=1e-4, rtol=0)


def test_budget_ends_with_the_mixing():
    x, _, _ = penalty_rows(update=50)
    result = StepOpsd(lambda_decay_updates=50, diagnose_every=50).assign(x)
    assert torch.equal(result.advantages, plain(x))
    assert float(result.metrics["step_scale/max"]) == 1.0
    assert result.metrics["delta/count"] == 480


def test_steps_have_their_own_statistics():
    x = inputs()
    metrics = StepOpsd().assign(x).metrics
    gaps = (x.teacher_logprobs - x.old_logprobs)[:3]
    steps = [gaps[i, s] for i in range(3) for s in (slice(2, 5), slice(6, 9))]
    assert metrics["delta/steps"] == 6
    expected = {
        "delta/step_mean": sum(float(g.mean()) for g in steps) / 6,
        "delta/step_sum": sum(float(g.sum()) for g in steps) / 6,
        "delta/step_abs_max": sum(float(g.abs().max()) for g in steps) / 6,
    }
    assert {k: float(metrics[k]) for k in expected} == pytest.approx(expected, rel=1e-5)


def test_divergence_of_shaped_and_plain_advantages_is_measured():
    x = inputs()
    result = StepOpsd(lambda_mix=1.0, alpha_clip=0.9, step_norm="none", lambda_decay_updates=0).assign(x)
    scored = x.teacher_logprobs.isfinite() & (x.step_ids >= 0)
    change = (result.advantages / plain(x) - 1).abs()[scored & (plain(x) != 0)]
    assert float(result.metrics["advantage/relative_change"]) == pytest.approx(float(change.mean()), rel=1e-5)
    assert 0 < float(result.metrics["advantage/relative_change_max"]) <= 0.9 + 1e-6
    shares = [float(result.metrics[f"advantage/scored_share{name}"]) for name in ("_plain", "")]
    assert shares[0] == pytest.approx(float(plain(x).abs()[scored].sum() / plain(x).abs().sum()))
    assert shares[1] == pytest.approx(float(result.advantages.abs()[scored].sum() / result.advantages.abs().sum()))
    rms = float(result.metrics["delta/rms"])
    assert rms**2 == pytest.approx(
        float(result.metrics["delta/mean"]) ** 2 + float(result.metrics["delta/std"]) ** 2, rel=1e-4
    )
