"""Ways to compute the pair op, and the check that each must pass before it is timed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepopsd.ops import dispatch

OPTIONS: dict[str, Any] = {"alpha_clip": 0.2, "lambda_mix": 0.2, "weight_fn": "sigmoid", "temperature": 1.0}
TOLERANCE = 1e-4
CHECKED_ROWS = 64


class WrongResult(Exception):
    """A contender disagrees with float64: its time would mean nothing."""


@dataclass(frozen=True)
class Rows:
    """Inputs of one call: logits (1, N, V); ids, advantages and active rows (1, N)."""

    student: Tensor
    teacher: Tensor
    ids: Tensor
    advantages: Tensor
    active: Tensor

    @property
    def bytes_read(self) -> int:
        """The fewest bytes of logits that a call must read: both rows of every active token."""
        live = int(self.active.sum())
        return 2 * live * self.student.shape[-1] * self.student.element_size()


Contender = Callable[[Rows], Tensor]


def make_rows(count: int, vocab: int, *, dtype: torch.dtype, device: str, masked: float = 0.0, seed: int = 0) -> Rows:
    """Random rows; the teacher's logits are the student's with noise, as after a hint."""
    rng = torch.Generator(device).manual_seed(seed)
    student = torch.randn((1, count, vocab), dtype=dtype, device=device, generator=rng).mul_(3)
    teacher = torch.randn((1, count, vocab), dtype=dtype, device=device, generator=rng).mul_(0.3).add_(student)
    ids = torch.randint(vocab, (1, count), device=device, generator=rng)
    advantages = torch.randn((1, count), device=device, generator=rng)
    # Exact share, at least one row, and spread over the batch as observations are.
    place = torch.randperm(count, device=device, generator=rng)
    active = (place >= min(count - 1, round(masked * count))).view(1, count)
    return Rows(student, teacher, ids, advantages, active)


def backend(name: str, *, entropy: bool = False) -> Contender:
    """The row kernels of one backend of this package."""
    pair_rows = dispatch.load(name).pair_rows
    return lambda x: pair_rows(x.student, x.teacher, x.ids, x.advantages, x.active, **OPTIONS, entropy=entropy)[0]


def eager_log_softmax(x: Rows) -> Tensor:
    """What most training code does: log_softmax in fp32, then gather."""
    student, teacher = (logits.float().log_softmax(-1).gather(-1, x.ids[..., None])[..., 0]
                        for logits in (x.student, x.teacher))  # fmt: skip
    return _epilogue(x, teacher - student)


def eager_logsumexp(x: Rows) -> Tensor:
    """The leaner form: selected logit minus logsumexp in fp32."""
    student, teacher = (logits.gather(-1, x.ids[..., None])[..., 0].float() - logits.float().logsumexp(-1)
                        for logits in (x.student, x.teacher))  # fmt: skip
    return _epilogue(x, teacher - student)


def _epilogue(x: Rows, delta: Tensor) -> Tensor:
    alpha, mix = OPTIONS["alpha_clip"], OPTIONS["lambda_mix"]
    weight = (2 * torch.sigmoid(x.advantages.sign() * delta)).clamp(1 - alpha, 1 + alpha)
    return torch.where(x.active, x.advantages * (1 + mix * (weight - 1)), x.advantages)


def contenders(device: str) -> dict[str, Contender]:
    """Everything that can run on a device by name; an interpreted kernel is no contender."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    found: dict[str, Contender] = {}
    for name in dispatch.BACKENDS:
        if dispatch.unavailable(name, device) is None and not (name == "triton" and interpreted):
            found[f"stepopsd {name}"] = backend(name)
    return {
        **found,
        "eager log_softmax": eager_log_softmax,
        "eager logsumexp": eager_logsumexp,
        "torch.compile": torch.compile(eager_logsumexp, dynamic=False),
    }


def verify(name: str, contender: Contender, rows: Rows) -> None:
    """Compare a contender with float64 on up to 64 rows of what will be timed.

    Raises:
        WrongResult: a result is off by more than 1e-4, or NaN.
    """
    got = contender(rows).double()[0]
    count = got.numel()
    sample = torch.linspace(0, count - 1, min(count, CHECKED_ROWS), device=got.device).long()
    few = Rows(*(x[:, sample] for x in (rows.student, rows.teacher, rows.ids, rows.advantages, rows.active)))
    logprobs = [logits.double().log_softmax(-1).gather(-1, few.ids[..., None])[..., 0]
                for logits in (few.student, few.teacher)]  # fmt: skip
    want = _epilogue(few, logprobs[1] - logprobs[0])[0]
    error = (got[sample] - want).abs().max().item()
    if not error <= TOLERANCE:
        raise WrongResult(f"{name} is off by {error:.3g} from float64 (allowed {TOLERANCE}): not timed")
