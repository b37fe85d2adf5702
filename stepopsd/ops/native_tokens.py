"""Launchers of the compiled CPU kernels on (N, T) token values; see ``native``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepopsd.ops.future_options import FutureOptions


def oar_rows(
    scores: Tensor,
    mask: Tensor,
    *,
    level: float,
    beta: float,
    floor: float,
    absolute: bool,
    preserve: bool,
    min_tokens: int,
) -> Tensor:
    """(N, T) float32 weights from contiguous (N, T) float32 scores and bool mask; see ``dispatch.Backend``.

    A row's bits follow from its masked scores alone, not from the rows beside it, the width or the number of threads.
    """
    from stepopsd.ops import native

    weights = torch.empty(scores.shape, dtype=torch.float32)
    native._module().oar_rows(
        scores.data_ptr(), mask.data_ptr(), *scores.shape, level, beta, floor, absolute, preserve, min_tokens,
        weights.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return weights


def future_rows(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, entropies: Tensor | None, options: FutureOptions
) -> Tensor:
    """(1, N, T) future values, (2, N, T) with branching scores, of contiguous float32; see ``dispatch.Backend``.

    A row's bits follow from its own values alone, as in ``oar_rows``.
    """
    from stepopsd.ops import native

    out = torch.empty((1 if entropies is None else 2, *mask.shape), dtype=torch.float32)
    tokens = [0 if x is None else x.data_ptr() for x in (logprobs, old_logprobs, entropies, mask)]
    clips = [
        (low, high, math.log(low), math.log(high))
        for low, high in ((options.low, options.high), (options.branch_low, options.branch_high))
    ]
    native._module().future_rows(
        tokens, *mask.shape, (options.gamma, options.log_clamp, options.drop_above, options.std_eps),
        options.decay == "valid", options.gate, *clips, out[0].data_ptr(), out[-1].data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out
