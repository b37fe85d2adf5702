"""Inputs of the ops with gradients: logits that a call may overwrite, or hidden states and heads; one sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stepopsd.experiments.bench.rows import DTYPES, LINEAR_OPS, Case

KL = 0.04
CLIP = (0.2, 0.28)
ADVANTAGE = 0.7
EXACT_ROWS = 64  # float64 logits at a time


@dataclass
class Problem:
    """Inputs of one call. Masked positions hold numbers too.

    ``ids`` int64, ``active`` bool, the advantages, old and reference log-probs and upstream gradients float32 are
    (1, N); all advantages are equal, as some kernels take one per sequence.

    ``pristine`` (1, N + 1, V) are the logits; ``refresh`` copies them to ``scratch``, where calls find them, and
    ``gradient`` is what a backward handed to them. ``teacher`` is (1, N, V). Linear ops have ``hidden`` (1, N, H) and
    ``weight`` (V, H), for which a gradient is wanted, and those of the teacher instead.
    """

    case: Case
    ids: Tensor
    active: Tensor
    advantages: Tensor
    old: Tensor
    ref: Tensor
    upstream: tuple[Tensor, Tensor]
    pristine: Tensor | None = None
    scratch: Tensor | None = None
    teacher: Tensor | None = None
    hidden: Tensor | None = None
    weight: Tensor | None = None
    teacher_hidden: Tensor | None = None
    teacher_weight: Tensor | None = None
    gradient: Tensor | None = field(default=None, repr=False)

    def refresh(self) -> None:
        """Before every call: the logits as they were, no gradient anywhere."""
        self.gradient = None
        if self.scratch is not None:
            self.scratch.copy_(required(self.pristine))
        for leaf in (self.hidden, self.weight):
            if leaf is not None:
                leaf.grad = None

    def logits(self) -> Tensor:
        """(1, N, V), the output of a node of the graph, as those of a model are: they may be overwritten."""
        return self._emit((1, self.case.rows, self.case.vocab))

    def store(self) -> Tensor:
        """(1, N + 1, V), for kernels that score all but the last position."""
        return self._emit((1, self.case.rows + 1, self.case.vocab))

    def _emit(self, size: tuple[int, ...]) -> Tensor:
        memory = required(self.scratch)
        # not a view: autograd treats views of a buffer that is overwritten in its own way
        rows = torch.empty(0, dtype=memory.dtype, device=memory.device).set_(
            memory.untyped_storage(), 0, size, memory.stride()
        )
        anchor = torch.zeros((), device=memory.device, requires_grad=True)
        emitted: Tensor = _Emit.apply(anchor, self, [rows])
        return emitted


class _Emit(torch.autograd.Function):
    """Stands for the model that made the logits, and takes their gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, problem: Problem, rows: list[Tensor]) -> Tensor:
        ctx.problem = problem
        return rows[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.problem.gradient = gradient
        return None, None, None


def make_problem(case: Case, device: str, *, seed: int = 0) -> Problem:
    """Random inputs; the ratios to the old log-probs lie inside and outside the clips, none on their edge."""
    rng = torch.Generator(device).manual_seed(seed)
    count = (1, case.rows)

    def normal(*size: int, scale: float = 1.0, around: Tensor | None = None) -> Tensor:
        x = torch.randn(size, dtype=DTYPES[case.dtype], device=device, generator=rng).mul_(scale)
        return x if around is None else x.add_(around)

    parts: dict[str, Tensor] = {}
    if case.op in LINEAR_OPS:
        parts["hidden"] = normal(*count, case.hidden)
        parts["weight"] = normal(case.vocab, case.hidden, scale=3 / case.hidden**0.5)
        if case.op == "linear-pair":
            parts["teacher_hidden"] = normal(*count, case.hidden, scale=0.1, around=parts["hidden"])
            parts["teacher_weight"] = parts["weight"].clone()
        else:
            parts["hidden"].requires_grad_()
            parts["weight"].requires_grad_()
    else:
        parts["pristine"] = normal(1, case.rows + 1, case.vocab, scale=3)
        parts["scratch"] = parts["pristine"].clone()
        if case.op == "shape-loss":
            parts["teacher"] = normal(1, case.rows, case.vocab, scale=0.3, around=parts["pristine"][:, :-1])
    ids = torch.randint(case.vocab, count, device=device, generator=rng)
    active = (torch.randperm(case.rows, device=device, generator=rng) >= case.rows - case.active).view(count)
    upstream = [torch.randn(count, device=device, generator=rng).where(active, 0) for _ in range(2)]
    advantages = torch.full(count, ADVANTAGE, device=device)
    x = Problem(case, ids, active, advantages, advantages, advantages, (upstream[0], upstream[1]), **parts)
    logprobs = torch.cat([_select(rows, x.ids[:, place]) for place, rows in exact_logits(x)], 1).float()

    def beside(*jumps: float) -> Tensor:
        chosen = torch.randint(len(jumps), count, device=device, generator=rng)
        return logprobs + torch.tensor(jumps, device=device)[chosen]

    # the reference is far: where the clip leaves its term alone, a rounded log-prob must not make the slope another
    x.old, x.ref = beside(-0.6, -0.1, 0.1, 0.6), beside(-0.6, 0.6)
    return x


def exact_logits(x: Problem, *, teacher: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """The logits in float64, (1, n, V) at a time with their place."""
    hidden, weight = (x.teacher_hidden, x.teacher_weight) if teacher else (x.hidden, x.weight)
    logits = x.teacher if teacher else x.pristine
    wide = None if weight is None else weight.detach().double()
    for begin in range(0, x.case.rows, EXACT_ROWS):
        place = slice(begin, min(begin + EXACT_ROWS, x.case.rows))
        if wide is not None:
            yield place, required(hidden)[:, place].detach().double() @ wide.T
        else:
            yield place, required(logits)[:, place].double()


def _select(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)


def required(x: Tensor | None) -> Tensor:
    """A part that this op's problems have."""
    if x is None:
        raise TypeError("this op's inputs have no such part")
    return x
