"""The custom ops on (N, T) token values: schema, real implementation and fake, as in ``registry``."""

from __future__ import annotations

import torch
from torch import Tensor

from stepopsd.ops import dispatch
from stepopsd.ops.future_options import FutureOptions
from stepopsd.ops.registry import traced


def oar_rows(
    scores: Tensor,
    mask: Tensor,
    level: float,
    beta: float,
    floor: float,
    absolute: bool,
    preserve: bool,
    min_tokens: int,
    backend: str,
) -> Tensor:
    """(N, T) weights, detached; ``backend`` is a name or "auto"."""
    knobs = (level, beta, floor, absolute, preserve, min_tokens, backend)
    if not traced(scores, mask):
        return _oar_rows(scores, mask, *knobs)
    with torch.no_grad():
        weights: Tensor = _oar_op(scores, mask, *knobs)
    return weights


def future_rows(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    entropies: Tensor | None,
    options: FutureOptions,
    backend: str,
) -> Tensor:
    """(1, N, T) future values, (2, N, T) with branching scores, detached; ``backend`` is a name or "auto"."""
    tensors = (logprobs, old_logprobs, mask)
    if not traced(*tensors, *([] if entropies is None else [entropies])):
        return _future_rows(*tensors, entropies, options, backend)
    with torch.no_grad():
        values: Tensor = _future_op(*tensors, entropies, *_flat(options), backend)
    return values


def _plain(x: Tensor) -> Tensor:
    """Contiguous and in the precision that is computed in."""
    wide = x if x.dtype in (torch.float32, torch.float64, torch.bool) else x.float()
    return wide.detach().contiguous()


def _oar_rows(
    scores: Tensor,
    mask: Tensor,
    level: float,
    beta: float,
    floor: float,
    absolute: bool,
    preserve: bool,
    min_tokens: int,
    backend: str,
) -> Tensor:
    scores = _plain(scores)
    name = dispatch.resolve_kernel("oar_rows", backend, scores.device.type, scores.dtype)
    return dispatch.load(name).oar_rows(
        scores, _plain(mask), level=level, beta=beta, floor=floor, absolute=absolute, preserve=preserve,
        min_tokens=min_tokens,
    )  # fmt: skip


@torch.library.custom_op("stepopsd::oar_rows", mutates_args=())
def _oar_op(
    scores: Tensor,
    mask: Tensor,
    level: float,
    beta: float,
    floor: float,
    absolute: bool,
    preserve: bool,
    min_tokens: int,
    backend: str,
) -> Tensor:
    return _oar_rows(scores, mask, level, beta, floor, absolute, preserve, min_tokens, backend)


@_oar_op.register_fake
def _(
    scores: Tensor,
    mask: Tensor,
    level: float,
    beta: float,
    floor: float,
    absolute: bool,
    preserve: bool,
    min_tokens: int,
    backend: str,
) -> Tensor:
    return scores.new_empty(scores.shape, dtype=_wide(scores.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _future_rows(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    entropies: Tensor | None,
    options: FutureOptions,
    backend: str,
) -> Tensor:
    tensors = [_plain(x) for x in (logprobs, old_logprobs) + (() if entropies is None else (entropies,))]
    # One precision for all: the widest that came in.
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    new, old, *more = (x.to(dtype) for x in tensors)
    name = dispatch.resolve_kernel("future_rows", backend, mask.device.type, dtype)
    return dispatch.load(name).future_rows(new, old, _plain(mask), more[0] if more else None, options)


def _flat(x: FutureOptions) -> tuple[list[float], float | None, str, bool]:
    numbers = [x.gamma, x.low, x.high, x.branch_low, x.branch_high, x.log_clamp, x.std_eps]
    return numbers, x.max_log_ratio, x.decay, x.gate


@torch.library.custom_op("stepopsd::future_rows", mutates_args=())
def _future_op(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    entropies: Tensor | None,
    numbers: list[float],
    max_log_ratio: float | None,
    decay: str,
    gate: bool,
    backend: str,
) -> Tensor:
    gamma, low, high, branch_low, branch_high, log_clamp, std_eps = numbers
    options = FutureOptions(
        gamma=gamma, low=low, high=high, branch_low=branch_low, branch_high=branch_high, log_clamp=log_clamp,
        max_log_ratio=max_log_ratio, decay=decay, gate=gate, std_eps=std_eps,
    )  # fmt: skip
    return _future_rows(logprobs, old_logprobs, mask, entropies, options, backend)


@_future_op.register_fake
def _(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    entropies: Tensor | None,
    numbers: list[float],
    max_log_ratio: float | None,
    decay: str,
    gate: bool,
    backend: str,
) -> Tensor:
    floats = [x.dtype for x in (logprobs, old_logprobs, entropies) if x is not None]
    dtype = torch.float64 if torch.float64 in floats else torch.float32
    return logprobs.new_empty((1 if entropies is None else 2, *mask.shape), dtype=dtype)
