"""The check that a contender must pass before it is timed: float64 on some of the very rows to be timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from stepopsd.experiments.bench.contenders import Contender, epilogue
from stepopsd.experiments.bench.memory import free_memory
from stepopsd.experiments.bench.rows import Case, Rows

CHECKED_ROWS = 64
TOLERANCE = 1e-4
T = TypeVar("T")


class WrongResult(Exception):
    """A contender disagrees with float64: its time would mean nothing."""


def tried(check: Callable[[], T], workspace: float, device: str) -> T | dict[str, Any]:
    """The result of a contender's check, or the part of its record that says why it is not timed.

    Args:
        check: Runs the contender and compares it with float64.
        workspace: Bytes that it needs beyond the inputs.
        device: Where it runs.
    """
    if workspace > 0.95 * free_memory(device):
        return {"error": f"needs about {workspace / 2**30:.0f} GiB beyond the inputs"}
    try:
        return check()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"error": "out of memory"}
    except WrongResult as wrong:
        return {"error": str(wrong), "wrong": True}
    except Exception as error:  # whatever a contender of another package dies of must not end the others' run
        if device == "cuda":
            torch.cuda.synchronize()  # raises where the device itself is lost
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0][:200]}"}


@dataclass(frozen=True)
class Agreement:
    """Largest difference from float64 over the checked rows, and the most that was allowed on any of them."""

    error: float
    allowed: float


def verify(contender: Contender, case: Case, x: Rows) -> Agreement:
    """Compare a contender with float64 on up to 64 active rows of what will be timed.

    Allowed is 1e-4. Where the contender's log-probs are rounded to the logits' dtype it is what this rounding can do,
    per token: one unit in the last place of each log-prob.

    Raises:
        WrongResult: A result is off by more than is allowed, or NaN.
    """
    active = x.active[0].nonzero()[:, 0]
    places = torch.linspace(0, len(active) - 1, min(len(active), CHECKED_ROWS), device=active.device)
    tokens = active[places.round().long()]
    few = x.take(tokens)
    student, teacher = (_logprobs(logits, few.ids) for logits in (few.student, few.teacher))
    want = epilogue(few, teacher - student) if case.op == "pair" else student
    allowed = torch.full_like(want, TOLERANCE)
    if contender.rounds:
        step = torch.finfo(x.student.dtype).eps * torch.maximum(student.abs(), teacher.abs())
        allowed += step * few.advantages.abs() if case.op == "pair" else step
    error = (contender.run(x).double()[:, tokens] - want).abs()
    if not bool((error <= allowed).all()):
        worst = (error - allowed).nan_to_num(nan=torch.inf).argmax()
        raise WrongResult(
            f"{contender.name} is off by {error.view(-1)[worst].item():.3g} from float64 "
            f"(allowed {allowed.view(-1)[worst].item():.3g}): not timed"
        )
    return Agreement(error.max().item(), allowed.max().item())


def _logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log p of ``ids`` (1, n) under ``logits`` (1, n, V), in float64."""
    wide = logits.double()
    return wide.gather(-1, ids[..., None])[..., 0] - wide.logsumexp(-1)
