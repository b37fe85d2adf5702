"""RLSD: the formula, its bounds, and that it is the op with the exponential weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepopsd.credit.rlsd import Rlsd, rlsd_advantages
from stepopsd.ops.shaping import shape_advantages
from tests.credit.test_stepopsd import inputs, plain


def formula(advantages, student, teacher, mask, clip, mixing):
    """Ã in float64, one formula per line."""
    a, delta = advantages.double(), (teacher.double() - student.double()).nan_to_num()
    weights = torch.exp(a.sign() * delta).clamp(1 - clip, 1 + clip)
    return torch.where(mask, (1 - mixing) * a + mixing * weights * a, a)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 16), clip=st.floats(0.01, 1.0), mixing=st.floats(0.0, 1.0))
def test_it_is_the_formula_and_stays_in_its_bounds(seed, clip, mixing):
    g = torch.Generator().manual_seed(seed)
    shape = (3, 7)
    student, teacher = -3 * torch.rand(2, *shape, generator=g)
    mask = torch.rand(shape, generator=g) < 0.7
    teacher[~mask] = torch.nan
    advantages = torch.randn(3, 1, generator=g).expand(shape) * torch.tensor([[1.0], [1.0], [0.0]])
    shaped = rlsd_advantages(advantages, student, teacher, mask, clip=clip, lambda_mix=mixing)
    expected = formula(advantages, student, teacher, mask, clip, mixing)
    torch.testing.assert_close(shaped.advantages.double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(shaped.advantages.sign(), advantages.sign())
    assert torch.equal(shaped.advantages[~mask], advantages[~mask])
    live = advantages != 0
    assert float((shaped.advantages[live] / advantages[live] - 1).abs().max()) <= mixing * clip + 1e-6
    assert not shaped.advantages.requires_grad


def test_it_is_the_op_with_the_exponential_weight():
    x = inputs()
    x = replace(x, step_ids=torch.where(x.response_mask, x.step_ids.clamp(min=0), -1))
    scored = x.teacher_logprobs.isfinite() & x.response_mask
    op = shape_advantages(
        None, None, None, plain(x), torch.where(scored, x.step_ids, -1), trajectory_ids=x.trajectory_ids,
        student_logprobs=x.old_logprobs, teacher_logprobs=torch.where(scored, x.teacher_logprobs, x.old_logprobs),
        weight_fn="exp", step_norm="none", alpha_clip=0.3, lambda_mix=0.7,
    )  # fmt: skip
    method = Rlsd(clip=0.3, lambda_mix=0.7, lambda_decay_updates=0)
    assert torch.equal(method.assign(x).advantages, op.advantages)
    assert not torch.equal(op.advantages, plain(x))


def test_equal_logprobs_weigh_nothing():
    x = replace(inputs(), teacher_logprobs=inputs().old_logprobs)
    assert torch.equal(Rlsd(lambda_mix=1.0).assign(x).advantages, plain(x))


def test_tokens_outside_spans_are_weighed_too():
    x = inputs()
    scores = x.old_logprobs - 0.1  # every token, not only those of steps
    result = Rlsd().assign(replace(x, teacher_logprobs=scores))
    outside = x.response_mask & (x.step_ids < 0) & (x.advantages[:, None] != 0)
    assert bool(outside.any())
    assert bool((result.advantages != plain(x))[outside].all())


def test_the_mix_decays_to_the_plain_advantages():
    method = Rlsd(lambda_mix=0.5, lambda_decay_updates=100)
    assert method.mixing(1) == pytest.approx(0.495)
    assert method.wants_teacher(99)
    assert not method.wants_teacher(100)
    x = inputs(update=100)
    assert torch.equal(method.assign(x).advantages, plain(x))
    assert torch.equal(method.assign(replace(x, teacher_logprobs=None)).advantages, plain(x))
