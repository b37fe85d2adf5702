"""Random calls of the differentiable ops, and what they mean in float64 through PyTorch's autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from tests.ops.conftest import BackendUnderTest
from tests.ops.strategies import DTYPES, lay_out, make_logits

LAYOUTS = ("contiguous", "shifted", "padded", "transposed", "misaligned", "three_strides", "flat")
FILLS = ("normal", "wide", "offset", "holes", "one_hot", "equal")
NAN = float("nan")


@dataclass(frozen=True)
class Scored:
    """Logits (..., V) with garbage where masked, and per-token tensors (...)."""

    logits: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    temperature: float | torch.Tensor
    fill: str

    def __repr__(self) -> str:
        x = self.logits
        return f"Scored({tuple(x.shape)}, strides={x.stride()}, {x.dtype}, {self.fill}, T={self.temperature})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # Hypothesis would print every element

    def on(self, device: str) -> dict[str, Any]:
        """Keyword arguments of ``token_logprobs`` on ``device``, without the logits."""
        t = self.temperature
        moved = t.to(device) if isinstance(t, torch.Tensor) else t
        return {"token_ids": self.ids.to(device), "mask": self.mask.to(device), "temperature": moved}


@st.composite
def scored(draw: st.DrawFn, *, max_rows: int = 20, max_vocab: int = 400) -> Scored:
    """Logits of any layout, dtype and kind; masked rows hold NaN and impossible ids."""
    n = draw(st.integers(1, 3))
    t = draw(st.integers(1, max(1, max_rows // (2 * n))))
    v = draw(st.one_of(st.integers(1, 40), st.integers(41, max_vocab)))
    layout, fill = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(FILLS))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from((0.0, 0.3, 1.0)))
    values = make_logits((n, t, v), fill, draw(st.sampled_from(DTYPES)), rng)
    ids = torch.randint(v, (n, t), generator=rng)
    mask = torch.rand((n, t), generator=rng) >= share
    values[~mask], ids[~mask] = NAN, -(10**12)
    logits = lay_out(values, layout)
    if layout == "flat":
        ids, mask = ids.reshape(-1), mask.reshape(-1)
    elif layout == "three_strides":
        ids, mask = (x[:, None].expand(n, 2, t) for x in (ids, mask))
    temperature = draw(st.sampled_from((1.0, 0.7, 2.5, None)))
    if temperature is None:
        per_token = (torch.rand(ids.shape, generator=rng) + 0.5).where(mask, NAN)
        return Scored(logits, ids, mask, per_token, fill)
    return Scored(logits, ids, mask, temperature, fill)


def reference_scores(
    logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, temperature: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-prob, log-sum-exp and entropy in float64, differentiable, 0 where masked."""
    t = temperature.double().where(mask, 1)[..., None] if isinstance(temperature, torch.Tensor) else temperature
    z = logits.double().where(mask[..., None], 0) / t
    log_p = z.log_softmax(-1)
    logprobs = log_p.gather(-1, ids.where(mask, 0)[..., None])[..., 0]
    entropy = -(log_p.exp() * log_p.clamp(min=-1e6)).sum(-1)  # p = 0 where the clamp acts
    lse = z.logsumexp(-1)
    return logprobs.where(mask, 0), lse.where(mask, 0), entropy.where(mask, 0)


def assert_gradient(
    got: torch.Tensor,
    want: torch.Tensor,
    size: torch.Tensor,
    backend: BackendUnderTest,
    logits: torch.Tensor,
    roundings: int = 1,
) -> None:
    """Within float32 of a row whose coefficients over T have this ``size``, and so many roundings to the dtype.

    The Triton interpreter rounds the product of an fma, which hardware does not: an error of the logits' size.
    """
    relative = 4e-6
    if backend.name == "triton" and backend.device == "cpu":
        relative += 2e-6 * float(logits.float().nan_to_num(0, 0, 0).abs().max())
    got = got.cpu().double()
    kind = torch.finfo(logits.dtype)
    allowed = relative * size[..., None] + roundings * (kind.eps * want.abs() + kind.smallest_normal * kind.eps)
    over = ~((got - want).abs() <= allowed)
    assert not over.any(), f"error {(got - want)[over].abs().max():.3g} at {over.nonzero()[0].tolist()}"


def non_leaf(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A leaf with these values and strides, and logits computed from it that may be overwritten."""
    leaf = values.detach().requires_grad_()
    return leaf, _Same.apply(leaf)


class _Same(torch.autograd.Function):
    """A copy with the strides of the original, NaN around the rows included."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        size = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
        memory = torch.full((size + 1,), NAN, dtype=x.dtype, device=x.device)[x.storage_offset() % 2 :]
        return memory.as_strided(x.shape, x.stride()).copy_(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.clone()
