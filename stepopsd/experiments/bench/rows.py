"""What is timed: one problem size, and the tensors of one call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPS = ("pair", "score")


@dataclass(frozen=True)
class Case:
    """One problem: ``pair`` ends in shaped advantages, ``score`` in the log-probs of the student's tensor.

    Args:
        op: ``pair`` or ``score``.
        rows: Tokens N.
        vocab: Logits per token V.
        dtype: ``bf16``, ``fp16`` or ``fp32``.
        masked: Share of the tokens outside steps; at least one token stays active.

    Raises:
        ValueError: An argument is out of range.
    """

    op: str
    rows: int
    vocab: int
    dtype: str
    masked: float = 0.0

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"op must be one of {', '.join(OPS)}, got {self.op!r}")
        if self.rows < 1 or self.vocab < 1:
            raise ValueError(f"rows and vocab must be at least 1, got {self.rows} and {self.vocab}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not 0 <= self.masked <= 1:
            raise ValueError(f"masked must lie in [0, 1], got {self.masked}")

    @property
    def active(self) -> int:
        """Tokens whose logits must be read."""
        return self.rows - min(self.rows - 1, round(self.masked * self.rows))

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def tensors(self) -> int:
        return 2 if self.op == "pair" else 1

    @property
    def bytes_read(self) -> int:
        """The fewest bytes that a call must read: each logit of every active token once."""
        return self.tensors * self.active * self.vocab * self.itemsize

    @property
    def input_bytes(self) -> int:
        """Memory of one set of inputs; both tensors exist also where one is read."""
        return 2 * (self.rows + 1) * self.vocab * self.itemsize

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rows:
    """Inputs of one call.

    ``student_store`` and ``teacher_store`` are (1, N + 1, V): some kernels expect one position more than they score.
    ids int64, advantages fp32 and active bool are (1, N).
    """

    student_store: Tensor
    teacher_store: Tensor
    ids: Tensor
    advantages: Tensor
    active: Tensor

    @property
    def student(self) -> Tensor:
        return self.student_store[:, :-1]  # (1, N, V)

    @property
    def teacher(self) -> Tensor:
        return self.teacher_store[:, :-1]  # (1, N, V)

    def take(self, tokens: Tensor) -> Rows:
        """A copy of some tokens (n,)."""
        spare = torch.cat((tokens, tokens[:1]))
        stores = (store[:, spare] for store in (self.student_store, self.teacher_store))
        return Rows(*stores, *(values[:, tokens] for values in (self.ids, self.advantages, self.active)))


def make_rows(case: Case, device: str, *, seed: int = 0) -> Rows:
    """Random rows; the teacher's logits are the student's with noise, as after a hint."""
    rng = torch.Generator(device).manual_seed(seed)
    size = (1, case.rows + 1, case.vocab)
    student = torch.randn(size, dtype=DTYPES[case.dtype], device=device, generator=rng).mul_(3)
    teacher = torch.randn(size, dtype=DTYPES[case.dtype], device=device, generator=rng).mul_(0.3).add_(student)
    ids = torch.randint(case.vocab, (1, case.rows), device=device, generator=rng)
    advantages = torch.randn((1, case.rows), device=device, generator=rng)
    # An exact share, spread over the batch as observations are.
    place = torch.randperm(case.rows, device=device, generator=rng)
    active = (place >= case.rows - case.active).view(1, case.rows)
    return Rows(student, teacher, ids, advantages, active)


def as_words(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as 32-bit words, without an odd last half."""
    flat = x.view(-1)
    per_word = 4 // x.element_size()
    return flat[: flat.numel() // per_word * per_word].view(torch.int32)
