"""The shape kernel: interpreted on a CPU, compiled where there is a GPU, against the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from stepopsd.ops.reference import shape_reference
from stepopsd.ops.results import STATISTICS
from stepopsd.ops.segments import StepSegments, sort_steps
from stepopsd.ops.triton import shape
from stepopsd.ops.triton.availability import availability
from stepopsd.ops.triton.shape import BLOCK, STEPS, TOKENS, TOKENS_PER_PROGRAM, shape_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),  # NumPy interprets
    pytest.mark.skipif(availability(DEVICE) is not None, reason=str(availability(DEVICE))),
]
INF, NAN = float("inf"), float("nan")
OPTIONS = {"alpha_clip": 0.2, "lambda_mix": 0.5, "weight_fn": "sigmoid", "step_norm": "equal_step_mean_abs"}


@dataclass
class Batch:
    """M tokens: log-probs, advantages, step ids (-1 in no step) and trajectory ids."""

    student: torch.Tensor
    teacher: torch.Tensor
    advantages: torch.Tensor
    steps: torch.Tensor
    trajectories: torch.Tensor

    def __getitem__(self, where: Any) -> Batch:
        return Batch(*(x[where] for x in vars(self).values()))

    @property
    def segments(self) -> StepSegments:
        return sort_steps(self.steps.to(DEVICE), self.trajectories.to(DEVICE))


def make(steps: list[int] | torch.Tensor, trajectories: list[int] | torch.Tensor | None = None, seed: int = 0) -> Batch:
    """Random log-probs and advantages for these step ids; NaN log-probs where there is no step."""
    rng = torch.Generator().manual_seed(seed)
    steps = torch.as_tensor(steps, dtype=torch.int64)
    keys = torch.zeros_like(steps) if trajectories is None else torch.as_tensor(trajectories)
    student, teacher, advantages = (torch.randn(len(steps), generator=rng) for _ in range(3))
    student[steps < 0] = teacher[steps < 0] = NAN
    return Batch(student, teacher, advantages, steps, keys)


def run(x: Batch, *, budget: bool = True, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = (t.to(DEVICE) for t in (x.student, x.teacher, x.advantages, x.steps >= 0))
    planes, statistics = shape_rows(*tensors, x.segments if budget else None, **{**OPTIONS, **options})
    return planes.cpu(), statistics.cpu()


def expect(x: Batch, *, budget: bool = True, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    merged = {**OPTIONS, **options, **({} if budget else {"step_norm": "none"})}
    want = shape_reference(
        None, None, None, x.advantages, x.steps, trajectory_ids=x.trajectories, student_logprobs=x.student,
        teacher_logprobs=x.teacher, **merged,
    )  # fmt: skip
    return torch.stack((want.advantages, want.weights, want.delta, want.step_scale)), want.stats.packed.double()


def check(x: Batch, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    (planes, statistics), (want, numbers) = run(x, **options), expect(x, **options)
    assert planes.dtype == torch.float32
    assert statistics.dtype == torch.float64
    torch.testing.assert_close(planes.double(), want, atol=1e-6, rtol=1e-6, equal_nan=True)
    for name, mine, theirs in zip(STATISTICS, statistics.tolist(), numbers.tolist(), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-6, abs=2e-7), name
    off = x.steps < 0
    assert same(planes[0][off], x.advantages[off])
    return planes, statistics


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, NaN and the sign of zero included."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int64
    return torch.equal(a.view(bits), b.view(bits))


def scattered(tokens: int, steps: int, trajectories: int, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return make(
        torch.randint(-1, steps, (tokens,), generator=rng), torch.randint(trajectories, (tokens,), generator=rng), seed
    )


@pytest.mark.parametrize("norm", ["equal_step_mean_abs", "equal_step_ratio"])
@pytest.mark.parametrize("weight_fn", ["sigmoid", "exp"])
@pytest.mark.parametrize("tokens", [1, 5, 300, 1100])
def test_scattered_steps_match_float64(tokens: int, weight_fn: str, norm: str) -> None:
    x = scattered(tokens, 7, 5)
    for alpha, mix in ((0.2, 0.5), (1.0, 1.0)):
        check(x, weight_fn=weight_fn, step_norm=norm, alpha_clip=alpha, lambda_mix=mix)


def test_many_programs_and_blocks_match_float64() -> None:
    x = scattered(2500, 12, 30)
    assert len(x.steps) > 4 * max(BLOCK, TOKENS_PER_PROGRAM)
    check(x)
    check(x, budget=False)


def test_more_trajectories_and_blocks_than_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = scattered(1800, 3, 8)
    with monkeypatch.context() as patch:
        patch.setattr(shape, "PROGRAMS", 3)
        check(x)
        few = run(x)[0], run(x, budget=False)[0]
    assert same(few[0], run(x)[0])
    assert same(few[1], run(x, budget=False)[0])


def test_one_trajectory_of_more_steps_than_a_tile_holds() -> None:
    assert STEPS < 70
    rng = torch.Generator().manual_seed(1)
    x = make(torch.arange(70).repeat_interleave(torch.randint(1, 9, (70,), generator=rng)))
    x.advantages *= torch.linspace(0.05, 4, 70)[x.steps]
    _, statistics = check(x)
    assert statistics[STATISTICS.index("steps")] == 70
    assert 0 < statistics[STATISTICS.index("scale_clamped")] < 1


def test_steps_longer_than_a_tile() -> None:
    assert 5 * TOKENS < 300
    check(make([0] * 3000 + [1] + [2] * 300))
    check(make([0] * 3000))


def test_rows_of_a_step_may_lie_apart() -> None:
    x = make(torch.tensor([[0, 1, 1, -1], [5, 0, -1, 0], [1, 1, 2, 5]]).repeat(1, 40).flatten(), None)
    x.trajectories = torch.tensor([9, -3, 9]).repeat_interleave(160)
    check(x)


def test_no_token_in_any_step() -> None:
    _, statistics = check(make([-1] * 70))
    assert statistics.tolist() == [0.0] * 14 + [1.0, 1.0, 0.0]
    check(make([-1] * 70), budget=False)


@pytest.mark.parametrize("budget", [False, True])
def test_no_tokens_at_all(budget: bool) -> None:
    planes, statistics = run(make([]), budget=budget)
    assert planes.shape == (4, 0)
    assert statistics.tolist() == [0.0] * 14 + [1.0, 1.0, 0.0]


@pytest.mark.parametrize("weight_fn", ["sigmoid", "exp"])
def test_gaps_of_any_size(weight_fn: str) -> None:
    x = make([0, 0, 0, 1, 1, 1, 2, 2, 2, -1, 3])
    x.student = torch.tensor([-1.0, -1e4, 0.0, -INF, -INF, 0.0, -1.0, -1.0, -INF, NAN, -1.0])
    x.teacher = torch.tensor([-1.0, 0.0, -1e4, 0.0, -1.0, -INF, -INF, -INF, -INF, INF, -1.5])
    x.advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, 0.0, -0.0, 2.0, -2.0, 1.0, 3.0, -1.0])
    planes, statistics = check(x, weight_fn=weight_fn, lambda_mix=1.0)
    assert planes[1].tolist()[4:6] == [1.0, 1.0]
    assert planes[0, 8].isnan(), "impossible for both models: no gap is defined"
    assert statistics[STATISTICS.index("nonfinite")] == 6


@pytest.mark.parametrize("norm", ["equal_step_mean_abs", "equal_step_ratio"])
def test_broken_tokens_stay_alone_and_take_their_step_s_factor(norm: str) -> None:
    x = make([0, 0, 0, 1, 1, 2, 2, 3])
    x.advantages = torch.tensor([1.0, 2.0, NAN, 3.0, 1.0, INF, 1.0, 5.0])
    x.student[4] = x.teacher[7] = NAN  # the fourth step has no finite token at all
    x.student[1] = x.teacher[1] = -INF
    planes, statistics = check(x, step_norm=norm)
    assert planes[0].isnan().tolist() == [False, True, True, False, True, False, False, True]
    assert planes[3, 0] == planes[3, 1] == planes[3, 2]
    assert planes[3, 7] == 1.0
    assert statistics[STATISTICS.index("steps")] == 3


def test_lambda_zero_returns_the_advantages_bit_for_bit() -> None:
    x = scattered(200, 3, 4)
    x.advantages[:5] = torch.tensor([NAN, -0.0, 1e-45, -3e38, INF])
    x.student[5:9] = NAN
    x.teacher[9:12] = INF
    planes, _ = check(x, lambda_mix=0.0, budget=False)
    assert same(planes[0], x.advantages)
    assert planes[1, 5:9][x.steps[5:9] >= 0].isnan().all()


@pytest.mark.parametrize(
    ("steps", "advantages"),
    [([4, 4, 4], [1.0, 2.0, 3.0]), ([0, 1, -1], [0.0, 0.0, 9.0]), ([0, 1, -1], [2.0, NAN, 1.0])],
    ids=["one step", "no advantage", "one live step"],
)
def test_nothing_to_share_out(steps: list[int], advantages: list[float]) -> None:
    x = make(steps)
    x.advantages = torch.tensor(advantages)
    planes, statistics = check(x)
    assert planes[3].eq(1).all()
    assert statistics[STATISTICS.index("steps")] > 0


def test_factors_are_clamped_to_a_half_and_two() -> None:
    x = make([0, 0, 1, 1])
    x.advantages = torch.tensor([100.0, 100.0, 1.0, -1.0])
    planes, statistics = check(x)
    assert planes[3, 2:].tolist() == [2.0, 2.0]
    assert statistics[-3:].tolist() == [float(planes[3, 0]), 2.0, 0.5]


def test_equal_values_have_no_deviation_and_a_far_mean_costs_no_digits() -> None:
    x = make([0] * 900)
    x.student, x.teacher = torch.full((900,), -3.3), torch.full((900,), -2.2)
    x.advantages = torch.ones(900)
    _, statistics = check(x)
    numbers = dict(zip(STATISTICS, statistics.tolist(), strict=True))
    assert numbers["delta_std"] == numbers["weight_std"] == 0.0
    assert numbers["delta_mean"] == float(x.teacher[0] - x.student[0])
    x.student = -torch.arange(900) % 2 * 2.0 - 1e6  # gaps of 1e6 and 1e6 + 2
    x.teacher = torch.zeros(900)
    _, statistics = run(x)
    assert statistics[STATISTICS.index("delta_std")] == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("budget", [False, True])
def test_two_runs_are_equal_bit_for_bit(budget: bool) -> None:
    x = scattered(2000, 9, 11)
    first, second = run(x, budget=budget), run(x, budget=budget)
    assert same(first[0], second[0])
    assert same(first[1], second[1])


@pytest.mark.skipif(DEVICE != "cpu", reason="only the interpreter's order can be chosen")
@pytest.mark.parametrize("norm", ["equal_step_mean_abs", "equal_step_ratio"])
def test_the_order_in_which_programs_run_does_not_matter(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import interpreter_builder as builder

    x = scattered(1500, 9, 11)
    first = run(x, step_norm=norm)
    forwards, allocate, made = builder.set_grid_idx, torch.empty, []
    monkeypatch.setattr(builder, "set_grid_idx", lambda i, j, k: forwards(builder.grid_dim[0] - 1 - i, j, k))
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: made.append(allocate(*size, **kind)) or made[-1])
    second = run(x, step_norm=norm)
    assert same(first[0], second[0])
    assert same(first[1], second[1])
    # No program wrote into the scratch of another, which one program at a time would not notice.
    values = next(t for t in made if t.shape in ((1, 1500), (2, 1500)))[0]
    order = x.segments.order[: int((x.steps >= 0).sum())]
    assert same(values[: len(order)] * first[0][3, order], first[0][0, order])


@pytest.mark.parametrize("norm", ["equal_step_mean_abs", "equal_step_ratio"])
def test_a_trajectory_s_bits_do_not_depend_on_its_batch(norm: str) -> None:
    x = scattered(2500, 40, 6)
    x.trajectories[x.trajectories == 5] = 0  # one of more than BLOCK tokens
    whole, _ = run(x, step_norm=norm)
    for trajectory in range(5):
        mine = x.trajectories == trajectory
        alone, _ = run(x[mine], step_norm=norm)
        assert same(alone, whole[:, mine])
    assert int((x.trajectories == 0).sum()) > BLOCK


def test_statistics_without_a_budget_count_the_same_tokens() -> None:
    x = scattered(700, 4, 3)
    with_budget, without = check(x)[1], check(x, budget=False)[1]
    torch.testing.assert_close(with_budget[:13], without[:13], rtol=1e-13, atol=0)
    assert without[13:].tolist() == [0.0, 1.0, 1.0, 0.0]
