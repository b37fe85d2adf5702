"""Hidden states and heads for the tests of the ops on them, and how much such a call holds and multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

N, H, V, ROWS = 512, 32, 8192, 16
CHUNK = ROWS * V * 4  # 512 KiB; all logits are 16 MiB


def tensors(seed: int = 0, n: int = 2, t: int = 5, h: int = 12, v: int = 37, dtype: torch.dtype = torch.float32) -> Any:
    """Hidden (n, t, h), weight (v, h), bias (v,), ids and mask (n, t)."""
    rng = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(s, generator=rng).to(dtype) for s in ((n, t, h), (v, h), (v,)))
    return hidden, weight, bias, torch.randint(v, (n, t), generator=rng), torch.rand((n, t), generator=rng) < 0.6


def leaves(*xs: Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in xs]


def errors(got: Any, want: Any) -> list[float]:
    return [float((x.double() - y.double()).norm()) for x, y in zip(got, want, strict=True)]


def memory(call: Callable[[], Any]) -> tuple[int, int]:
    """Most bytes that ``call`` holds at a time, and the largest single piece, as PyTorch's allocator has them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak, largest = max(peak, held), max(largest, event.nbytes())
    assert events
    return peak, largest


def products(call: Callable[[], Any]) -> int:
    """Number of matrix products in ``call``."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return sum(e.count for e in seen.key_averages() if e.key in ("aten::mm", "aten::addmm"))


def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob, log-sum-exp and entropy through autograd, in float64."""
    z = hidden.double() @ weight.double().t() + (0 if bias is None else bias.double())
    z = z / (temperature[..., None].double() if isinstance(temperature, Tensor) else temperature)
    log_p = z.log_softmax(-1)
    return log_p.gather(-1, ids[..., None])[..., 0], z.logsumexp(-1), -(log_p.exp() * log_p).sum(-1)
