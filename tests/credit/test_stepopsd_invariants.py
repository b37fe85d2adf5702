"""What shaping may never do, one property a test, for any batch: StepOPSD, and RLSD where it makes the same promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepopsd.credit import CreditInputs
from stepopsd.credit.rlsd import Rlsd
from stepopsd.credit.stepopsd import StepOpsd
from stepopsd.ops.shaping import shape_advantages

MORE = settings(max_examples=40, deadline=None)


@st.composite
def batches(draw, constant=False):
    """Rows of several trajectories; spans, gaps and advantages of any size and sign, 0 included."""
    n, t = draw(st.integers(1, 5)), draw(st.integers(2, 12))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1 << 16)))
    mask = torch.rand(n, t, generator=g) < 0.8
    steps = torch.randint(-1, 3, (n, t), generator=g, dtype=torch.int32).where(mask, -1)
    trajectories = torch.randint(3, (n,), generator=g)
    advantages = torch.randn(3, generator=g)[trajectories]  # a trajectory has one
    if draw(st.booleans()):
        advantages = advantages.where(trajectories != 0, 0.0)
    if not constant and draw(st.booleans()):
        advantages = advantages[:, None] * (0.2 + torch.rand(n, t, generator=g))
    student = -4 * torch.rand(n, t, generator=g)
    gaps = torch.randn(n, t, generator=g) * draw(st.sampled_from((0.05, 1.0, 10.0)))
    asked = (torch.rand(n, t, generator=g) < 0.9) & (steps >= 0)
    return CreditInputs(
        advantages=advantages, response_mask=mask, step_ids=steps, trajectory_ids=trajectories,
        old_logprobs=student.where(mask, 0.0), teacher_logprobs=(student + gaps).where(asked, torch.nan), update=1,
    )  # fmt: skip


@st.composite
def methods(draw, norms=("equal_step_mean_abs", "equal_step_ratio", "none")):
    alpha, mixing = draw(st.floats(0.01, 0.99)), draw(st.floats(0.0, 0.99))
    if draw(st.booleans()):
        return Rlsd(clip=alpha, lambda_mix=mixing, lambda_decay_updates=0)
    return StepOpsd(
        weight_fn=draw(st.sampled_from(("sigmoid", "exp"))), alpha_clip=alpha, step_norm=draw(st.sampled_from(norms)),
        lambda_mix=mixing, lambda_decay_updates=0,
    )  # fmt: skip


def plain(x):
    per_token = x.advantages if x.advantages.ndim == 2 else x.advantages[:, None]
    return torch.where(x.response_mask, per_token, 0.0)


@MORE
@given(x=batches(), method=methods())
def test_the_sign_of_an_advantage_never_changes(x, method):
    assert torch.equal(method.assign(x).advantages.sign(), plain(x).sign())


@MORE
@given(x=batches(constant=True), norm=st.sampled_from(("equal_step_mean_abs", "equal_step_ratio", "none")))
def test_lambda_zero_keeps_advantages(x, norm):
    assert torch.equal(StepOpsd(lambda_mix=0.0, step_norm=norm).assign(x).advantages, plain(x))
    assert torch.equal(Rlsd(lambda_mix=0.0).assign(x).advantages, plain(x))


@MORE
@given(x=batches(), method=methods(norms=("none",)))
def test_before_the_budget_advantages_move_by_at_most_lambda_times_alpha(x, method):
    alpha = method.clip if isinstance(method, Rlsd) else method.alpha_clip
    before, after = plain(x), method.assign(x).advantages
    live = before != 0
    assert ((after / before - 1).abs()[live] <= method.lambda_mix * alpha + 1e-5).all()


@MORE
@given(x=batches(), alpha=st.floats(0.01, 0.99), mixing=st.floats(0.01, 0.99))
def test_after_the_budget_steps_of_a_trajectory_have_one_mean(x, alpha, mixing):
    after = StepOpsd(alpha_clip=alpha, lambda_mix=mixing, lambda_decay_updates=0).assign(x)
    none = StepOpsd(alpha_clip=alpha, lambda_mix=mixing, lambda_decay_updates=0, step_norm="none").assign(x)
    scored = x.teacher_logprobs.isfinite() & x.response_mask
    for trajectory in x.trajectory_ids.unique():
        own = scored & (x.trajectory_ids == trajectory)[:, None]
        means = []
        for step in x.step_ids[own].unique():
            here = own & (x.step_ids == step)
            before, now = (float(r.advantages[here].abs().mean()) for r in (none, after))
            if before > 1e-3 and 0.5001 < now / before < 1.999:  # not clamped
                means.append(now)
        assert not means or max(means) - min(means) <= 2e-3 * max(means)


@MORE
@given(x=batches(), method=methods())
def test_tokens_outside_spans_keep_their_bits(x, method):
    outside = ~x.teacher_logprobs.isfinite()  # nothing outside spans was asked
    assert torch.equal(method.assign(x).advantages[outside], plain(x)[outside])


@MORE
@given(x=batches(), method=methods())
def test_no_gap_is_weight_one(x, method):
    x = replace(x, teacher_logprobs=x.old_logprobs.where(x.teacher_logprobs.isfinite(), torch.nan))
    assert (method.assign(x).tokens["weights"] == 1).all()


@MORE
@given(x=batches(constant=True), method=methods())
def test_no_advantage_stays_none(x, method):
    x = replace(x, advantages=torch.zeros_like(x.advantages))
    assert (method.assign(x).advantages == 0).all()


@pytest.mark.parametrize("method", [StepOpsd(), Rlsd()])
def test_no_result_carries_a_gradient(method):
    g = torch.Generator().manual_seed(0)
    shape = (2, 4)
    x = CreditInputs(
        advantages=torch.randn(2, generator=g, requires_grad=True), response_mask=torch.ones(shape, dtype=torch.bool),
        step_ids=torch.tensor([[0, 0, 1, 1]] * 2, dtype=torch.int32), trajectory_ids=torch.arange(2),
        old_logprobs=torch.randn(shape, generator=g, requires_grad=True),
        teacher_logprobs=torch.randn(shape, generator=g, requires_grad=True), update=1,
    )  # fmt: skip
    result = method.assign(x)
    assert result.factors is not None
    assert not any(t.requires_grad for t in (result.advantages, result.factors, *result.tokens.values()))


@MORE
@given(x=batches(), alpha=st.floats(0.01, 0.99), mixing=st.floats(0.01, 0.99))
def test_rlsd_is_the_op_and_stepopsd_with_the_exponential_weight_and_no_budget(x, alpha, mixing):
    rlsd = Rlsd(clip=alpha, lambda_mix=mixing, lambda_decay_updates=0).assign(x)
    same = StepOpsd(
        weight_fn="exp", alpha_clip=alpha, step_norm="none", lambda_mix=mixing, lambda_decay_updates=0
    ).assign(x)
    asked = x.teacher_logprobs.isfinite()
    op = shape_advantages(
        None, None, None, plain(x), torch.where(asked, 0, -1), student_logprobs=x.old_logprobs,
        teacher_logprobs=x.teacher_logprobs.where(asked, x.old_logprobs), weight_fn="exp", step_norm="none",
        alpha_clip=alpha, lambda_mix=mixing,
    )  # fmt: skip
    assert torch.equal(rlsd.advantages, op.advantages)
    assert torch.equal(rlsd.advantages, same.advantages)
