"""shape_advantages: the invariants of the method, what is not read, and the errors for bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stepopsd
from stepopsd.ops.results import ShapedAdvantages
from stepopsd.ops.shaping import shape_advantages
from tests.ops.conftest import BackendUnderTest
from tests.ops.strategies import lay_out


def from_logprobs(
    advantages: torch.Tensor, delta: torch.Tensor, steps: torch.Tensor | None = None, **options: Any
) -> ShapedAdvantages:
    student = torch.full_like(delta, -30.0)
    return shape_advantages(
        None, None, None, advantages, steps, student_logprobs=student, teacher_logprobs=student + delta, **options
    )


@st.composite
def token_columns(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    n, t = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    constant = draw(st.booleans())
    advantages = torch.randn((n, 1) if constant else (n, t), generator=rng).expand(n, t).clone()
    advantages[torch.rand(n, t, generator=rng) < 0.1] = 0.0
    return {
        "advantages": advantages,
        "delta": torch.randn(n, t, generator=rng) * draw(st.sampled_from((0.05, 1.0, 20.0))),
        "steps": torch.randint(-1, 4, (n, t), generator=rng),
        "trajectory_ids": torch.randint(2, (n,), generator=rng),
    }


OPTIONS = st.fixed_dictionaries(
    {
        "alpha_clip": st.floats(0.01, 1.0),
        "lambda_mix": st.floats(0.0, 1.0),
        "weight_fn": st.sampled_from(("sigmoid", "exp")),
        "step_norm": st.sampled_from(("equal_step_mean_abs", "equal_step_ratio", "none")),
    }
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(token_columns(), OPTIONS)
def test_invariants_of_the_method(columns: dict[str, torch.Tensor], options: dict[str, Any]) -> None:
    a, steps, trajectories = columns["advantages"], columns["steps"], columns["trajectory_ids"]
    got = from_logprobs(a, columns["delta"], steps, trajectory_ids=trajectories, **options)
    alpha, lam = options["alpha_clip"], options["lambda_mix"]
    # sign kept; at α = λ = 1 a weight may reach 0
    assert (got.advantages * a >= 0).all()
    assert (got.advantages[a == 0] == 0).all()
    if lam * alpha < 0.99:
        assert torch.equal(got.advantages.sign(), a.sign())
    assert ((got.weights >= 1 - alpha - 1e-6) & (got.weights <= 1 + alpha + 1e-6)).all()
    # before the budget |Ã/A - 1| <= λα
    moved = got.advantages / got.step_scale - a
    assert (moved.abs() <= lam * alpha * a.abs() * (1 + 1e-5) + 1e-6).all()
    # tokens outside steps are untouched
    outside = steps < 0
    assert torch.equal(got.advantages[outside], a[outside])
    assert (got.weights[outside] == 1).all()
    assert (got.step_scale[outside] == 1).all()
    if lam == 0:
        assert torch.equal(got.advantages, a)
    if options["step_norm"] == "equal_step_mean_abs" and lam > 0:
        assert_steps_have_one_budget(got, steps, trajectories[:, None].expand_as(steps))


def assert_steps_have_one_budget(got: ShapedAdvantages, steps: torch.Tensor, trajectories: torch.Tensor) -> None:
    for trajectory in trajectories.unique():
        budgets = []
        for step in steps[(trajectories == trajectory) & (steps >= 0)].unique():
            mine = (trajectories == trajectory) & (steps == step)
            c = float(got.step_scale[mine][0])
            if 0.5 < c < 2.0 and c != 1.0:
                budgets.append(float(got.advantages[mine].abs().mean()))
        if budgets:
            assert max(budgets) - min(budgets) < 2e-5


def test_no_gap_gives_weight_one_and_keeps_advantages() -> None:
    a = torch.randn(3, 5)
    got = from_logprobs(a, torch.zeros(3, 5))
    assert torch.equal(got.weights, torch.ones(3, 5))
    assert torch.equal(got.advantages, a)


def test_lambda_zero_returns_advantages_bit_for_bit_but_still_observes() -> None:
    a = torch.tensor([[1.5, -0.0, -3.0, 2.0]])
    steps, gap = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1.0, 2.0, -0.1, float("nan")]])
    got = from_logprobs(a, gap, steps, lambda_mix=0.0)  # no budget runs, so no trajectory ids are needed
    assert torch.equal(got.advantages.view(torch.int32), a.view(torch.int32))
    assert got.stats.as_dict()["count"] == 3
    assert got.stats.as_dict()["delta_max"] == pytest.approx(2.0)


def test_nothing_carries_a_gradient() -> None:
    x = torch.randn(2, 3, 11, requires_grad=True)
    a = torch.randn(2, 3, requires_grad=True)
    steps = torch.tensor([[0, 1, 1], [0, 0, 1]])
    got = shape_advantages(x, x + 1, torch.ones(2, 3).long(), a, steps, trajectory_ids=torch.arange(2), entropy=True)
    assert got.entropies is not None
    tensors = (got.advantages, got.weights, got.delta, got.student_logprobs, got.teacher_logprobs, got.step_scale)
    assert not any(t.requires_grad for t in (*tensors, *got.entropies))


@pytest.mark.parametrize("layout", ["contiguous", "shifted", "padded", "transposed", "misaligned", "three_strides"])
def test_masked_rows_read_no_logits(backend: BackendUnderTest, layout: str) -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 37, generator=rng)
    values[0, 1] = values[1, 2] = float("nan")
    steps = torch.tensor([[0, -1, 1], [0, 1, -7]])
    ids = torch.tensor([[3, -(2**62), 5], [36, 0, 2**62]])
    x = lay_out(values, layout)
    if layout == "three_strides":
        steps, ids = (y[:, None].expand(2, 2, 3) for y in (steps, ids))
    a = torch.randn(steps.shape, generator=rng)
    got = shape_advantages(
        x.to(backend.device),
        (x * 2).to(backend.device),
        ids.to(backend.device),
        a.to(backend.device),
        steps.to(backend.device),
        step_norm="none",
        entropy=True,
        backend=backend.name,
    )
    masked = steps < 0
    assert got.entropies is not None
    for zero in (got.delta, got.student_logprobs, got.teacher_logprobs, *got.entropies):
        assert (zero.cpu()[masked] == 0).all()
        assert zero.isfinite().all()
    assert torch.equal(got.advantages.cpu()[masked], a[masked])
    assert (got.student_logprobs.cpu()[~masked] < 0).all()


def test_ratio_budget_keeps_the_difference_of_penalised_rows() -> None:
    # two turns of one trajectory, the second with a penalty; the teacher has no opinion
    a = torch.tensor([[0.16, 0.16], [-6.2, -6.2]])
    steps, ids, gap = torch.tensor([[0, 0], [1, 1]]), torch.tensor([5, 5]), torch.zeros(2, 2)
    ratio = from_logprobs(a, gap, steps, trajectory_ids=ids, step_norm="equal_step_ratio")
    literal = from_logprobs(a, gap, steps, trajectory_ids=ids, step_norm="equal_step_mean_abs")
    torch.testing.assert_close(ratio.advantages, a)
    torch.testing.assert_close(literal.step_scale, torch.tensor([[2.0, 2.0], [0.5129, 0.5129]]), atol=1e-3, rtol=0)


def test_trajectory_ids_may_be_given_per_row_or_per_token() -> None:
    rng = torch.Generator().manual_seed(0)
    a, gap = torch.randn(3, 4, generator=rng), torch.randn(3, 4, generator=rng)
    steps, ids = torch.randint(-1, 3, (3, 4), generator=rng), torch.tensor([1, 1, 2])
    per_row = from_logprobs(a, gap, steps, trajectory_ids=ids)
    per_token = from_logprobs(a, gap, steps, trajectory_ids=ids[:, None].expand(3, 4))
    flat = from_logprobs(
        a.flatten(), gap.flatten(), steps.flatten(), trajectory_ids=ids.repeat_interleave(4), entropy=False
    )
    assert torch.equal(per_row.advantages, per_token.advantages)
    assert torch.equal(per_row.advantages.flatten(), flat.advantages)


def test_without_step_ids_every_token_counts_and_no_budget_runs() -> None:
    got = from_logprobs(torch.tensor([[1.0, -5.0]]), torch.tensor([[9.0, 9.0]]))
    torch.testing.assert_close(got.weights, torch.tensor([[1.2, 0.8]]))
    assert torch.equal(got.step_scale, torch.ones(1, 2))
    assert got.stats.as_dict()["steps"] == 0


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 1, 3)])
def test_any_leading_shape(backend: BackendUnderTest, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, 13, device=backend.device)
    ids, a = torch.ones(shape, dtype=torch.int64, device=backend.device), torch.ones(shape, device=backend.device)
    steps = torch.zeros(shape, dtype=torch.int32, device=backend.device)
    got = shape_advantages(x, -x, ids, a, steps, trajectory_ids=steps, backend=backend.name)
    assert got.advantages.shape == got.delta.shape == got.step_scale.shape == shape
    assert got.stats.as_dict()["count"] == a.numel()


def test_statistics_count_the_edges_of_the_clip() -> None:
    got = from_logprobs(torch.ones(1, 4), torch.tensor([[-9.0, 9.0, 9.0, 0.1]]))
    stats = got.stats.as_dict()
    assert (stats["at_low"], stats["at_high"]) == (0.25, 0.5)
    assert stats["delta_abs_mean"] == pytest.approx((9 * 3 + 0.1) / 4)
    assert stats["weight_min"] == pytest.approx(0.8)


def test_statistics_without_step_tokens_are_zero() -> None:
    got = from_logprobs(torch.ones(2, 2), torch.ones(2, 2), torch.full((2, 2), -1), trajectory_ids=torch.arange(2))
    stats = got.stats.as_dict()
    assert all(stats[name] == 0 for name in stats if not name.startswith("scale_m"))
    assert stats["scale_min"] == stats["scale_max"] == 1


def test_clamped_steps_are_counted_per_step_not_per_token() -> None:
    a, steps = torch.tensor([[9.0, 1.0, 1.0, 1.0]]), torch.tensor([[0, 1, 1, 1]])
    stats = from_logprobs(a, torch.zeros(1, 4), steps, trajectory_ids=torch.tensor([0])).stats.as_dict()
    assert (stats["steps"], stats["scale_clamped"], stats["scale_max"]) == (2, 0.5, 2.0)


def test_float64_input_is_computed_in_float64() -> None:
    x = torch.randn(2, 5, dtype=torch.float64)
    got = shape_advantages(x, -x, torch.tensor([0, 4]), torch.ones(2))
    want = (-x).log_softmax(-1) - x.log_softmax(-1)
    assert got.advantages.dtype == torch.float64
    torch.testing.assert_close(got.delta, want[[0, 1], [0, 4]], atol=1e-14, rtol=0)


def call(**changes: Any) -> ShapedAdvantages:
    arguments: dict[str, Any] = {
        "student_logits": torch.zeros(2, 3, 7),
        "teacher_logits": torch.zeros(2, 3, 7),
        "token_ids": torch.zeros(2, 3, dtype=torch.int64),
        "advantages": torch.zeros(2, 3),
        "step_ids": torch.zeros(2, 3, dtype=torch.int32),
        "trajectory_ids": torch.arange(2),
    }
    return shape_advantages(**{**arguments, **changes})


NO_LOGITS = {"student_logits": None, "teacher_logits": None, "token_ids": None}
LOGPROBS = {"student_logprobs": torch.zeros(2, 3), "teacher_logprobs": torch.zeros(2, 3)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"alpha_clip": 0.0}, ValueError, r"alpha_clip must lie in \(0, 1\], got 0.0"),
        ({"alpha_clip": 1.7}, ValueError, r"alpha_clip must lie in \(0, 1\], got 1.7"),
        ({"alpha_clip": float("nan")}, ValueError, "alpha_clip .* got nan"),
        ({"lambda_mix": -0.1}, ValueError, r"lambda_mix must lie in \[0, 1\], got -0.1"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and greater than 0, got 0.0"),
        ({"weight_fn": "tanh"}, ValueError, "weight_fn must be one of sigmoid, exp, got 'tanh'"),
        ({"step_norm": "mean"}, ValueError, "step_norm must be one of equal_step_mean_abs, .* got 'mean'"),
        ({"trajectory_ids": None}, ValueError, "trajectory_ids must be given with step_ids when step_norm"),
        ({"trajectory_ids": torch.arange(3)}, ValueError, r"must have shape \(2, 3\) or \(2,\), got \(3,\)"),
        ({"trajectory_ids": torch.rand(2)}, TypeError, "trajectory_ids must be torch.int64, torch.int32, got"),
        ({"step_ids": torch.zeros(2, 3)}, TypeError, "step_ids must be torch.int64, torch.int32, got torch.float32"),
        ({"step_ids": torch.zeros(2).int()}, ValueError, r"step_ids must have shape \(2, 3\), .* got \(2,\)"),
        ({"advantages": torch.zeros(2)}, ValueError, r"advantages must have shape \(2, 3\), .* got \(2,\)"),
        ({"advantages": torch.zeros(2, 3).bfloat16()}, TypeError, "advantages must be torch.float32, got"),
        ({"advantages": torch.zeros(2, 3).double()}, TypeError, "advantages must be torch.float32, got"),
        ({"token_ids": torch.zeros(2, 3)}, TypeError, "token_ids must be torch.int64, torch.int32, got torch.float32"),
        ({"token_ids": torch.zeros(6).long()}, ValueError, r"token_ids must have shape \(2, 3\)"),
        ({"token_ids": torch.full((2, 3), 7)}, IndexError, r"token_ids must lie in \[0, 7\), got 7"),
        ({"teacher_logits": torch.zeros(2, 3, 8)}, ValueError, r"teacher_logits must have the shape .*8\)"),
        ({"teacher_logits": torch.zeros(2, 3, 7).half()}, TypeError, "teacher_logits must have the dtype"),
        ({"student_logits": torch.zeros(2, 3, 7).int()}, TypeError, "student_logits must be torch.bfloat16"),
        ({"student_logits": torch.zeros(2, 7, 3).mT}, ValueError, "student_logits must be contiguous"),
        ({"student_logits": torch.zeros(2, 3, 0)}, ValueError, r"student_logits must have shape .* V >= 1"),
        ({"teacher_logits": torch.zeros(2, 3, 7, device="meta")}, ValueError, "teacher_logits must be on cpu .* meta"),
        ({"token_ids": None}, ValueError, "give either student_logits, teacher_logits and token_ids"),
        ({"teacher_logits": None}, ValueError, "got student_logits, token_ids"),
        (LOGPROBS, ValueError, "give either"),
        ({**NO_LOGITS, **LOGPROBS, "temperature": 0.7}, ValueError, "temperature must be 1.0 with ready log-probs"),
        ({**NO_LOGITS, **LOGPROBS, "entropy": True}, ValueError, "entropy must be False with ready log-probs"),
        (
            {**NO_LOGITS, **LOGPROBS, "teacher_logprobs": torch.zeros(2)},
            ValueError,
            r"teacher_logprobs must have the shape of student_logprobs \(2, 3\), got \(2,\)",
        ),
        ({**NO_LOGITS, **LOGPROBS, "student_logprobs": torch.zeros(2, 3).int()}, TypeError, "student_logprobs must be"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(**changes)


def test_an_id_out_of_range_is_named_with_its_place(backend: BackendUnderTest) -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    ids[1, 2] = -1
    if backend.device != "cpu":
        pytest.skip("on a GPU the row is NaN instead")
    with pytest.raises(IndexError, match=r"got -1 at position \(1, 2\)"):
        call(token_ids=ids, backend=backend.name)


def test_good_input_passes_the_checks() -> None:
    assert call().advantages.shape == (2, 3)
    assert call(token_ids=torch.zeros(2, 3, dtype=torch.int32), trajectory_ids=torch.zeros(2, 3).int()) is not None


def test_the_package_offers_the_op() -> None:
    assert stepopsd.shape_advantages is shape_advantages
    assert stepopsd.ShapedAdvantages is ShapedAdvantages
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = stepopsd.no_such_name
