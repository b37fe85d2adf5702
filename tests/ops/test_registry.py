"""The custom ops as torch sees them: schema, fake, compilation into one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stepopsd
from stepopsd.ops import registry
from tests.ops.conftest import BackendUnderTest

OPTIONS = (0.2, 0.5, "sigmoid", "equal_step_mean_abs")


def rows(device: str = "cpu") -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 19, generator=rng)[:, :-1].to(device) for _ in range(2))
    ids = torch.randint(19, (2, 3), generator=rng).to(device)
    advantages = torch.randn(2, 3, generator=rng).to(device)
    return student, teacher, ids, advantages, torch.tensor([[True, True, False], [True, False, True]], device=device)


def test_score_rows_passes_opcheck(backend: BackendUnderTest) -> None:
    student, teacher, ids, _, active = rows(backend.device)
    temperatures = torch.full(ids.shape, 0.7, device=backend.device)
    torch.library.opcheck(registry._score_op, ([student, teacher], ids, active, 0.9, None, True, backend.name))
    torch.library.opcheck(registry._score_op, ([student], ids, active, 1.0, temperatures, False, backend.name))


@pytest.mark.parametrize("budget", [False, True])
def test_shape_rows_passes_opcheck(backend: BackendUnderTest, budget: bool) -> None:
    student, teacher, _, advantages, active = rows(backend.device)
    steps = torch.tensor([[0, 1, 1], [2, 2, 0]], device=backend.device).where(active, -1).flatten()
    segments = registry.step_segments(steps, torch.zeros_like(steps)).tensors if budget else []
    arguments = (student[..., 0], teacher[..., 0], advantages, active, segments, *OPTIONS, backend.name)
    torch.library.opcheck(registry._shape_op, arguments)


def test_step_segments_passes_opcheck() -> None:
    ids = torch.tensor([0, 1, 1, 0, -1])
    torch.library.opcheck(registry._segments_op, (ids, torch.zeros_like(ids)))


@pytest.mark.parametrize("empty", [False, True])
def test_fakes_have_the_shape_and_dtype_of_the_real_results(empty: bool) -> None:
    arguments = tuple(x[:0] for x in rows()) if empty else rows()
    for dtype in (torch.float32, torch.float64):
        pair, ids, active = [x.to(dtype) for x in arguments[:2]], arguments[2], arguments[4]
        real = registry.score_rows(pair, ids, active, 1.0, False, "torch")
        with torch._subclasses.FakeTensorMode() as mode:
            moved = [mode.from_tensor(x) for x in (*pair, ids, active)]
            fake = registry.score_rows(moved[:2], *moved[2:], 1.0, False, "torch")
        assert isinstance(fake, torch._subclasses.FakeTensor)
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def test_plain_eager_calls_bypass_the_op_and_others_do_not() -> None:
    x = torch.zeros(2)
    assert not registry.traced(x, torch.nn.Parameter(x))
    with torch._subclasses.FakeTensorMode() as mode:
        assert registry.traced(x)
        fake = mode.from_tensor(x)
    assert registry.traced(fake)
    seen = []
    torch.vmap(lambda y: seen.append(registry.traced(y)) or y)(x)
    assert seen == [True]


def shape(student: torch.Tensor, teacher: torch.Tensor, ids: torch.Tensor, a: torch.Tensor, steps: torch.Tensor) -> Any:
    return stepopsd.shape_advantages(
        student, teacher, ids, a, steps, trajectory_ids=torch.zeros_like(ids[:, 0]), entropy=True
    )


def test_compiles_into_one_graph() -> None:
    student, teacher, ids, advantages, active = rows()
    steps = torch.tensor([[0, 1, 1], [2, 2, 0]]).where(active, -1)
    eager = shape(student, teacher, ids, advantages, steps)
    got = torch.compile(shape, fullgraph=True, backend="aot_eager")(student, teacher, ids, advantages, steps)
    torch.testing.assert_close(got.advantages, eager.advantages)
    assert got.stats.as_dict() == pytest.approx(eager.stats.as_dict(), abs=1e-6)


def test_one_graph_serves_other_row_counts() -> None:
    student, teacher, ids, advantages, active = (torch.cat((x, x)) for x in rows())
    steps = torch.tensor([[0, 1, 1], [2, 2, 0]] * 2).where(active, -1)
    compiled = torch.compile(lambda *x: shape(*x).advantages, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 3):
        tensors = (student[:n], teacher[:n], ids[:n], advantages[:n], steps[:n])
        torch.testing.assert_close(compiled(*tensors), shape(*tensors).advantages)


def test_compiles_with_inductor() -> None:
    student, teacher, ids, advantages, active = rows()
    steps = torch.tensor([[0, 1, 1], [2, 2, 0]]).where(active, -1)
    compiled = torch.compile(lambda *x: shape(*x).advantages * 1, fullgraph=True)
    got = compiled(student, teacher, ids, advantages, steps)  # the strides of sliced logits must survive
    torch.testing.assert_close(got, shape(student, teacher, ids, advantages, steps).advantages)


def test_a_compiled_call_still_checks_ids() -> None:
    student, teacher, ids, advantages, active = rows()
    compiled = torch.compile(shape, fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match=r"token_ids must lie in \[0, 19\), got 19 at position \(0, 0\)"):
        compiled(student, teacher, ids.fill_(19), advantages, active.int() - 1)
