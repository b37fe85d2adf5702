"""Random inputs of the op: shapes, strides, dtypes, masks and kinds of logits, as Hypothesis strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAYOUTS = ("contiguous", "shifted", "padded", "transposed", "misaligned", "three_strides", "flat")
FILLS = ("normal", "wide", "offset", "holes", "one_hot", "equal", "broken")


@dataclass(frozen=True)
class Case:
    """One call of the op: tensors for the positional arguments and the keyword arguments."""

    student: torch.Tensor
    teacher: torch.Tensor
    ids: torch.Tensor
    advantages: torch.Tensor
    steps: torch.Tensor
    trajectories: torch.Tensor
    fills: tuple[str, str]
    options: dict[str, Any]

    def __repr__(self) -> str:
        x, y = self.student, self.teacher
        strides = f"strides={x.stride()}, {y.stride()}"
        return f"Case(shape={tuple(x.shape)}, {strides}, dtype={x.dtype}, fills={self.fills}, {self.options})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # Hypothesis would print every element

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.student, self.teacher, self.ids, self.advantages, self.steps

    def to(self, device: str) -> Case:
        """A copy on ``device`` with the same strides."""
        moved = (_like(x, x.to(device)) for x in (*self.tensors, self.trajectories))
        return Case(*moved, self.fills, self.options)


def _like(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if y is x or x.stride() == y.stride():
        return y
    size = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    base = torch.empty(size, dtype=y.dtype, device=y.device).as_strided(x.shape, x.stride())
    return base.copy_(y)


def lay_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """``values`` (N, T, V) with the strides of ``layout``; memory around the rows holds NaN."""
    n, t, v = values.shape

    def room(*shape: int) -> torch.Tensor:
        return torch.full(shape, float("nan"), dtype=values.dtype)

    if layout == "shifted":  # logits[:, :-1] of a causal LM
        return room(n, t + 1, v)[:, :-1].copy_(values)
    if layout == "padded":
        return room(n, t, v + 3)[..., :v].copy_(values)
    if layout == "transposed":
        return room(t, n, v).transpose(0, 1).copy_(values)
    if layout == "misaligned":
        return room(n * t * v + 1)[1:].view(n, t, v).copy_(values)
    if layout == "three_strides":
        return room(n, 2, t + 1, v)[:, :, :-1].copy_(values[:, None].expand(n, 2, t, v))
    return values.clone() if layout == "contiguous" else values.reshape(n * t, v)


def make_logits(shape: tuple[int, ...], fill: str, dtype: torch.dtype, rng: torch.Generator) -> torch.Tensor:
    """(N, T, V) logits; every kind keeps at least one finite logit per row except ``broken``."""
    x = torch.randn(shape, generator=rng) * 3
    one = torch.randint(shape[-1], (*shape[:-1], 1), generator=rng)
    if fill == "wide":
        x.scatter_(-1, one, 1e4)
        x.scatter_(-1, torch.randint(shape[-1], one.shape, generator=rng), -1e4)
    elif fill == "offset":
        x += 1e4
    elif fill == "holes":
        x[torch.rand(shape, generator=rng) < 0.4] = float("-inf")
        x.scatter_(-1, one, 1.0)
    elif fill == "one_hot":
        x.fill_(float("-inf")).scatter_(-1, one, 2.0)
    elif fill == "equal":
        x.fill_(0.5)
    elif fill == "broken":
        kind = torch.randint(4, shape[:-1], generator=rng)
        x[kind == 1] = float("-inf")
        x.scatter_(-1, one, torch.where((kind == 2)[..., None], float("nan"), x.gather(-1, one)))
        x.scatter_(-1, one, torch.where((kind == 3)[..., None], float("inf"), x.gather(-1, one)))
    return x.to(dtype)


@st.composite
def cases(draw: st.DrawFn, *, max_vocab: int = 600, max_rows: int = 24) -> Case:
    """A ``Case`` with masked tokens whose logits, ids and neighbours in memory are garbage."""
    n = draw(st.integers(1, 4))
    t = draw(st.integers(1, max(1, max_rows // (2 * n))))
    v = draw(st.one_of(st.integers(1, 40), st.integers(41, max_vocab)))
    dtype = draw(st.sampled_from(DTYPES))
    layouts = [draw(st.sampled_from(LAYOUTS))]
    layouts.append(layouts[0] if layouts[0] in ("flat", "three_strides") else draw(st.sampled_from(LAYOUTS[:5])))
    fills = (draw(st.sampled_from(FILLS)), draw(st.sampled_from(FILLS)))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    share_masked = draw(st.sampled_from((0.0, 0.3, 0.9, 1.0)))

    pair = [make_logits((n, t, v), fill, dtype, rng) for fill in fills]
    ids = torch.randint(v, (n, t), generator=rng)
    advantages = torch.randn((n, t), generator=rng) * torch.randint(3, (n, 1), generator=rng)
    steps = torch.randint(3, (n, t), generator=rng).int()
    masked = torch.rand((n, t), generator=rng) < share_masked
    steps[masked] = -1
    ids[masked] = -(10**12)
    for x in pair:
        x[masked] = float("nan")
    student, teacher = (lay_out(x, layout) for x, layout in zip(pair, layouts, strict=True))
    trajectories = torch.randint(2, (n,), generator=rng)
    if layouts[0] == "flat":
        ids, advantages, steps = (x.reshape(-1) for x in (ids, advantages, steps))
        trajectories = trajectories.repeat_interleave(t)
    elif layouts[0] == "three_strides":
        ids, advantages, steps = (x[:, None].expand(n, 2, t) for x in (ids, advantages, steps))
    options = {
        "alpha_clip": draw(st.sampled_from((0.05, 0.2, 1.0))),
        "lambda_mix": draw(st.sampled_from((0.0, 0.2, 1.0))),
        "weight_fn": draw(st.sampled_from(("sigmoid", "exp"))),
        "step_norm": draw(st.sampled_from(("equal_step_mean_abs", "equal_step_ratio", "none"))),
        "temperature": draw(st.sampled_from((1.0, 0.7, 2.5))),
    }
    return Case(student, teacher, ids, advantages, steps, trajectories, fills, options)
