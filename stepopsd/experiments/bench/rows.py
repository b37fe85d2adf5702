"""What is timed: one problem size, and the tensors of one call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPS = ("pair", "score")
ROW_OPS = ("logprobs", "entropies", "backward", "loss", "shape-loss")
LINEAR_OPS = ("linear-pair", "linear-logprobs", "linear-loss")
GRADIENT_OPS = (*ROW_OPS, *LINEAR_OPS)  # measured by gradient_measure.py
# Passes over the logits that an op cannot do without: a read, and a read with a write.
READS = {"logprobs": 1, "entropies": 1, "shape-loss": 1}
PRODUCTS = {"linear-pair": 2, "linear-logprobs": 3, "linear-loss": 3}


@dataclass(frozen=True)
class Case:
    """One problem.

    ``pair`` ends in shaped advantages, ``score`` in the log-probs of the student's tensor. With gradients:
    ``logprobs``, ``entropies`` (log-probs and entropies), ``backward`` (of log-probs, after a forward that is not
    timed), ``loss`` (GRPO with clip and KL), ``shape-loss``; ``linear-...`` from hidden states, of which
    ``linear-pair`` has no gradient.

    Args:
        op: One of these.
        rows: Tokens N.
        vocab: Logits per token V.
        dtype: ``bf16``, ``fp16`` or ``fp32``.
        masked: Share of the tokens outside steps; at least one token stays active.
        hidden: Width H of the hidden states of a ``linear-...`` op; 0 for the others.

    Raises:
        ValueError: An argument is out of range.
    """

    op: str
    rows: int
    vocab: int
    dtype: str
    masked: float = 0.0
    hidden: int = 0

    def __post_init__(self) -> None:
        if self.op not in (*OPS, *GRADIENT_OPS):
            raise ValueError(f"op must be one of {', '.join((*OPS, *GRADIENT_OPS))}, got {self.op!r}")
        if self.rows < 1 or self.vocab < 1:
            raise ValueError(f"rows and vocab must be at least 1, got {self.rows} and {self.vocab}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not 0 <= self.masked <= 1:
            raise ValueError(f"masked must lie in [0, 1], got {self.masked}")
        if (self.hidden < 1) if self.op in LINEAR_OPS else (self.hidden != 0):
            raise ValueError(f"hidden must be at least 1 for linear ops and 0 else, got {self.hidden} for {self.op}")
        if self.op in GRADIENT_OPS and self.dtype == "fp16":
            raise ValueError(f"dtype must be bf16 or fp32 for {self.op}, got 'fp16': its gradients need a loss scale")

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
    def bytes_moved(self) -> int:
        """The fewest bytes that an op with gradients must move: active logits read, read again and written."""
        return (READS.get(self.op, 0) + 2) * self.active * self.vocab * self.itemsize

    @property
    def operations(self) -> int:
        """Multiplications and additions of the matrix products that a ``linear-...`` op cannot do without."""
        return 2 * PRODUCTS.get(self.op, 0) * self.active * self.vocab * self.hidden

    @property
    def input_bytes(self) -> int:
        """Memory of one set of inputs; both tensors exist also where one is read."""
        logits = (self.rows + 1) * self.vocab
        if self.op in LINEAR_OPS:
            heads = 2 * self.hidden * (self.vocab + self.rows)
            return (2 * heads + logits) * self.itemsize  # and the products' outputs, which time the limit
        return (4 if self.op in ROW_OPS else 2) * logits * self.itemsize

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
