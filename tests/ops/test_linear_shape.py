"""linear_shape_advantages: equal to shape_advantages on the logits of two models, which need not be alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepopsd.ops.linear import linear_shape_advantages, linear_token_logprobs
from stepopsd.ops.shaping import shape_advantages
from tests.ops.conftest import BackendUnderTest
from tests.ops.linear_cases import CHUNK, ROWS, H, N, V, memory, tensors


def two_models(dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    student, student_head, student_bias, ids, mask = tensors(dtype=dtype)
    teacher, teacher_head, _, _, _ = tensors(seed=1, h=20, dtype=dtype)
    steps = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 2, 2]]).where(mask, -1)
    advantages = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
    return student, student_head, student_bias, teacher, teacher_head, ids, advantages, steps


@pytest.mark.parametrize("bound", [None, 9])
def test_shaping_equals_the_op_on_logits(backend: BackendUnderTest, bound: int | None) -> None:
    student, head, bias, teacher, teacher_head, ids, advantages, steps = (x.to(backend.device) for x in two_models())
    options: dict[str, Any] = {
        "trajectory_ids": torch.arange(2, device=steps.device), "temperature": 0.8, "entropy": True, "lambda_mix": 0.5,
        "weight_fn": "exp", "backend": backend.name,
    }  # fmt: skip
    got = linear_shape_advantages(
        student, head, teacher, teacher_head, ids, advantages, steps, student_bias=bias, max_active=bound,
        chunk_rows=2, **options,
    )  # fmt: skip
    want = shape_advantages(
        student @ head.t() + bias, teacher @ teacher_head.t(), ids, advantages, steps, **options
    )  # fmt: skip
    for name in ("advantages", "weights", "delta", "student_logprobs", "teacher_logprobs", "step_scale"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=2e-5, rtol=1e-5)
    assert got.entropies is not None
    assert want.entropies is not None
    for x, y in zip(got.entropies, want.entropies, strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-5)
    assert got.stats.as_dict() == pytest.approx(want.stats.as_dict(), abs=1e-4)


def test_models_may_differ_in_dtype_and_padding() -> None:
    student, head, _, teacher, teacher_head, ids, advantages, steps = two_models()
    teacher, teacher_head = teacher.bfloat16(), torch.cat((teacher_head, torch.full((3, 20), 0.1))).bfloat16()
    got = linear_shape_advantages(student, head, teacher, teacher_head, ids, advantages, steps, step_norm="none")
    want = linear_token_logprobs(teacher, teacher_head, ids, mask=steps >= 0).logprobs
    torch.testing.assert_close(got.teacher_logprobs, want)
    assert got.entropies is None


def test_one_model_on_both_sides_gives_exactly_no_difference() -> None:
    student, head, _, _, _, ids, advantages, steps = two_models(torch.bfloat16)
    got = linear_shape_advantages(student, head, student, head, ids, advantages, steps, step_norm="none")
    assert not got.delta.any()
    assert torch.equal(got.advantages, advantages)


def test_shaping_holds_one_chunk_for_both_models() -> None:
    student, head, _, ids, _ = tensors(n=1, t=N, h=H, v=V)
    advantages = torch.ones(1, N)
    peak, largest = memory(
        lambda: linear_shape_advantages(student, head, student, head, ids, advantages, chunk_rows=ROWS)
    )
    assert largest <= CHUNK
    assert peak <= CHUNK * 5 + 500 * N < N * V * 4


def test_shaping_names_mistakes() -> None:
    student, head, _, teacher, teacher_head, ids, advantages, steps = two_models()
    with pytest.raises(ValueError, match=r"teacher_hidden must have the leading shape of student_hidden \(2, 5\)"):
        linear_shape_advantages(student, head, teacher[:1], teacher_head, ids, advantages, steps)
    with pytest.raises(ValueError, match=r"teacher_weight must have shape \(V, 20\)"):
        linear_shape_advantages(student, head, teacher, head, ids, advantages, steps)
    with pytest.raises(ValueError, match="trajectory_ids must be given"):
        linear_shape_advantages(student, head, teacher, teacher_head, ids, advantages, steps)
    with pytest.raises(IndexError, match=r"token_ids must lie in \[0, 30\)"):
        linear_shape_advantages(student, head, teacher, teacher_head[:30], ids.fill_(31), advantages, step_norm="none")
