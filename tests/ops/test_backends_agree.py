"""Every backend against the float64 reference, over random shapes, strides, dtypes, masks and extreme logits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from stepopsd.ops.reference import shape_reference
from stepopsd.ops.results import ShapedAdvantages
from stepopsd.ops.shaping import shape_advantages
from tests.ops.conftest import BackendUnderTest
from tests.ops.strategies import DTYPES, Case, cases, make_logits

# A row costs milliseconds in the Triton interpreter.
EXAMPLES = {"torch": 60, "cuda": 60, "cpu": 60, "triton": 25}


def compute(case: Case, backend: BackendUnderTest) -> ShapedAdvantages:
    moved = case.to(backend.device)
    return shape_advantages(
        *moved.tensors,
        trajectory_ids=moved.trajectories,
        entropy=True,
        backend=backend.name,
        **moved.options,
    )


def expect(case: Case) -> ShapedAdvantages:
    trajectories = case.trajectories.view(-1, *[1] * (case.steps.ndim - 1)).expand(case.steps.shape)
    return shape_reference(*case.tensors, trajectory_ids=trajectories, **case.options)


def assert_close(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: torch.Tensor | float) -> None:
    """Equal NaN, equal infinities, and within ``tolerance`` elsewhere."""
    got = got.cpu().double()
    assert torch.equal(got.isnan(), want.isnan()), f"{name}: NaN at {got.isnan()}, expected {want.isnan()}"
    assert torch.equal(got.isinf(), want.isinf()), f"{name}: inf at {got.isinf()}, expected {want.isinf()}"
    infinite = want.isinf()
    assert torch.equal(got[infinite], want[infinite]), f"{name}: wrong sign of infinity"
    error = (got - want).abs()
    over = want.isfinite() & (error > tolerance)
    assert not over.any(), f"{name}: error {error[over].max():.3g} at {over.nonzero()[0].tolist()}"


def interpreter_rounding(case: Case, backend: BackendUnderTest) -> float:
    """The Triton interpreter rounds the product of an fma, which hardware does not: an error of the logits' size."""
    if backend.name != "triton" or backend.device == "cuda":
        return 0.0
    largest = max(float(x.float().nan_to_num(0, 0, 0).abs().max()) for x in (case.student, case.teacher))
    return 2.5e-7 * largest / case.options["temperature"]


def assert_matches(got: ShapedAdvantages, want: ShapedAdvantages, case: Case, rounding: float) -> None:
    size = want.student_logprobs.abs().nan_to_num(0, 0, 0) + want.teacher_logprobs.abs().nan_to_num(0, 0, 0)
    logp_tolerance = 4e-6 + 3e-7 * size + rounding
    assert_close("student_logprobs", got.student_logprobs, want.student_logprobs, logp_tolerance)
    assert_close("teacher_logprobs", got.teacher_logprobs, want.teacher_logprobs, logp_tolerance)
    assert_close("delta", got.delta, want.delta, 2 * logp_tolerance)
    weight_tolerance = 4 * logp_tolerance  # the slope of exp at the upper edge of the clip is at most 2
    assert_close("weights", got.weights, want.weights, weight_tolerance)
    # c_k couples the tokens of a trajectory, so one error bound for all of them
    worst = float(weight_tolerance.max())
    assert_close("step_scale", got.step_scale, want.step_scale, 8 * worst)
    assert_close("advantages", got.advantages, want.advantages, 16 * worst * (1e-3 + case.advantages.abs()))
    assert got.entropies is not None
    assert want.entropies is not None
    for name, g, w in zip(("student", "teacher"), got.entropies, want.entropies, strict=True):
        assert_close(f"{name} entropy", g, w, 1e-5 + 10 * rounding)
    assert_statistics_match(got, want, 8 * worst)


def assert_statistics_match(got: ShapedAdvantages, want: ShapedAdvantages, tolerance: float) -> None:
    mine, theirs = got.stats.as_dict(), want.stats.as_dict()
    for name in ("count", "nonfinite", "steps"):
        assert mine[name] == theirs[name], name
    edges = ("at_low", "at_high", "scale_clamped")  # a value next to an edge may fall on either side
    for name in set(theirs) - set(edges):
        assert mine[name] == pytest.approx(theirs[name], abs=tolerance), name


def test_random_calls_match_the_float64_reference(backend: BackendUnderTest) -> None:
    @settings(
        max_examples=EXAMPLES[backend.name],
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # cases are made from a seed, there is little to shrink
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(case=cases(max_rows=6 if backend.name == "triton" else 24))
    def check(case: Case) -> None:
        got, want = compute(case, backend), expect(case)
        assert_matches(got, want, case, interpreter_rounding(case, backend))
        outside = case.steps < 0
        assert torch.equal(got.advantages.cpu()[outside], case.advantages[outside])
        finite = got.student_logprobs[~got.student_logprobs.isnan()]
        assert (finite <= 0).all()
        alive = got.weights[~got.weights.isnan()]
        low, high = 1 - case.options["alpha_clip"], 1 + case.options["alpha_clip"]
        assert ((alive >= low - 1e-7) & (alive <= high + 2e-7)).all()
        if case.options["lambda_mix"] == 0:
            assert torch.equal(got.advantages.cpu(), case.advantages)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_logits_change_nothing(backend: BackendUnderTest, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    for fill in ("normal", "wide", "offset", "equal"):
        logits = make_logits((2, 2, 301), fill, dtype, rng).to(backend.device)
        ids = torch.randint(301, (2, 2), generator=rng).to(backend.device)
        advantages = torch.randn((2, 2), generator=rng).to(backend.device)
        got = shape_advantages(
            logits, logits.clone(), ids, advantages, lambda_mix=1.0, temperature=0.7, backend=backend.name
        )
        assert torch.equal(got.delta, torch.zeros_like(advantages))
        assert torch.equal(got.weights, torch.ones_like(advantages))
        assert torch.equal(got.advantages, advantages)


@pytest.mark.parametrize("weight_fn", ["sigmoid", "exp"])
def test_weights_stay_finite_for_gaps_of_any_size(backend: BackendUnderTest, weight_fn: str) -> None:
    inf = float("inf")
    student = torch.tensor([-1.0, -1e4, 0.0, -inf, -inf, 0.0, -1.0, -1.0, -inf], device=backend.device)
    teacher = torch.tensor([-1.0, 0.0, -1e4, 0.0, -1.0, -inf, -inf, -inf, -inf], device=backend.device)
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, 0.0, 0.0, 2.0, -2.0, 1.0], device=backend.device)
    got = shape_advantages(
        None,
        None,
        None,
        advantages,
        student_logprobs=student,
        teacher_logprobs=teacher,
        lambda_mix=1.0,
        weight_fn=weight_fn,
        backend=backend.name,
    )
    want = torch.tensor([1.0, 1.2, 0.8, 0.8, 1.0, 1.0, 0.8, 1.2])
    torch.testing.assert_close(got.weights[:8].cpu(), want)
    torch.testing.assert_close(got.advantages[:8].cpu(), want * advantages[:8].cpu())
    assert got.advantages[8].isnan(), "impossible for both models: no gap is defined"
    assert got.stats.as_dict()["nonfinite"] == 6


def test_both_forms_agree_bit_for_bit(backend: BackendUnderTest) -> None:
    rng = torch.Generator().manual_seed(2)
    student, teacher = (make_logits((2, 3, 77), "normal", torch.float32, rng).to(backend.device) for _ in range(2))
    ids = torch.randint(77, (2, 3), generator=rng).to(backend.device)
    advantages = torch.randn((2, 3), generator=rng).to(backend.device)
    steps = torch.tensor([[0, 1, -1], [1, 0, 0]], device=backend.device)
    rest = {"trajectory_ids": torch.tensor([4, 4], device=backend.device), "backend": backend.name}
    a = shape_advantages(student, teacher, ids, advantages, steps, **rest)
    b = shape_advantages(
        None,
        None,
        None,
        advantages,
        steps,
        student_logprobs=a.student_logprobs,
        teacher_logprobs=a.teacher_logprobs,
        **rest,
    )
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(x, y, atol=1.5e-7, rtol=0)


def test_a_broken_row_stays_alone(backend: BackendUnderTest) -> None:
    rng = torch.Generator().manual_seed(5)
    student, teacher = (make_logits((1, 6, 65), "normal", torch.float32, rng) for _ in range(2))
    student[0, 1, 7] = float("nan")
    teacher[0, 2, 9] = float("inf")
    teacher[0, 3] = float("-inf")
    steps = torch.tensor([[0, 0, 1, 1, 1, 0]])
    got = shape_advantages(
        student.to(backend.device),
        teacher.to(backend.device),
        torch.zeros(1, 6, dtype=torch.int64, device=backend.device),
        torch.ones(1, 6, device=backend.device),
        steps.to(backend.device),
        trajectory_ids=torch.tensor([0], device=backend.device),
        backend=backend.name,
    )
    assert got.advantages.isnan().tolist() == [[False, True, True, True, False, False]]
    assert got.step_scale.isfinite().all()
    assert got.stats.as_dict()["nonfinite"] == 3
