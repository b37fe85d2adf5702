"""Arguments that the hidden-state ops share: checks of head and states, the tokens to compute, how to compute them."""

from __future__ import annotations

import torch
from torch import Tensor

from stepopsd.ops import checks, registry
from stepopsd.ops.linear_ops import HeadOptions
from stepopsd.ops.linear_rows import Tokens


def choose_tokens(ids: Tensor, mask: Tensor | None, max_active: int | None) -> Tokens:
    """The tokens to compute; a mask is resolved here, once for forward and backward, unless someone traces."""
    if max_active is not None and max_active < 0:
        raise ValueError(f"max_active must be 0 or more, got {max_active}")
    if mask is None or max_active is None:
        tokens = Tokens(ids, mask, None, None)
        return tokens if registry.traced(ids) else tokens.resolved()
    flat = mask.reshape(-1)
    index = flat.logical_not().byte().argsort(stable=True)[:max_active]
    return Tokens(ids, mask, index, flat[index])


def head_options(
    hidden: Tensor, weight: Tensor, fp32_logits: bool, chunk_rows: int | None, backend: str
) -> HeadOptions:
    """The options as plain values; raise unless a chunk has a row."""
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    return HeadOptions(autocast_dtype(hidden, weight), fp32_logits, chunk_rows or 0, backend)


def autocast_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype to which autocast converts both, or None."""
    kind = hidden.device.type
    if not torch.is_autocast_enabled(kind) or torch.float64 in (hidden.dtype, weight.dtype):
        return None
    return torch.get_autocast_dtype(kind)


def check_head(prefix: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, fp32_logits: bool) -> torch.Size:
    """The leading shape of the hidden states; raise unless they and the head fit each other."""
    checks.floats(f"{prefix}hidden", hidden)
    checks.floats(f"{prefix}weight", weight)
    if hidden.ndim < 1 or hidden.shape[-1] < 1:
        raise ValueError(f"{prefix}hidden must have shape (..., H) with H >= 1, got {tuple(hidden.shape)}")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] < 1:
        raise ValueError(
            f"{prefix}weight must have shape (V, {hidden.shape[-1]}) with V >= 1, got {tuple(weight.shape)}"
        )
    checks.same_device(f"{prefix}weight", weight, hidden.device)
    mixed = fp32_logits and torch.float64 not in (hidden.dtype, weight.dtype)
    if weight.dtype != hidden.dtype and not mixed and autocast_dtype(hidden, weight) is None:
        raise TypeError(
            f"{prefix}weight must have the dtype of {prefix}hidden {hidden.dtype}, or float32 logits be asked for with "
            f"fp32_logits=True, got {weight.dtype}"
        )
    if bias is not None:
        checks.floats(f"{prefix}bias", bias)
        checks.same_device(f"{prefix}bias", bias, hidden.device)
        if bias.shape != weight.shape[:1] or bias.dtype != weight.dtype:
            raise ValueError(
                f"{prefix}bias must have shape ({weight.shape[0]},) and dtype {weight.dtype}, got {tuple(bias.shape)} "
                f"and {bias.dtype}"
            )
    return hidden.shape[:-1]
