"""oar_reshape(): outcome scores of tokens to advantage weights of mean 1."""

from __future__ import annotations

from torch import Tensor

from stepopsd.ops import checks, token_ops

CUTS = ("quantile", "absolute")


def oar_reshape(
    scores: Tensor,
    mask: Tensor,
    *,
    quantile: float = 0.25,
    beta: float = 1.0,
    floor: float = 0.1,
    cut: str = "quantile",
    preserve: bool = True,
    min_tokens: int = 4,
    backend: str = "auto",
) -> Tensor:
    """Two-tier weights of each row's masked tokens: damped below a quantile of their scores, raised above it.

    Per row, over the tokens in the mask: z = log(1 + max(s, 0)), n = (z - min z) / (max z - min z), θ the quantile of
    n (linear between neighbours); w = max(n / θ, floor) where n < θ, else 1 + beta·(n - θ) / (1 - θ); and with
    ``preserve`` w ← w·L / Σw over the L tokens, so that the row's advantage mass stays what it was.

    Args:
        scores: (N, T) float, at least 0; negative ones count as 0. Computed in float32, float64 stays float64.
        mask: (N, T) bool, tokens to weigh. The scores of others are not read.
        quantile: In [0, 1]: share of tokens to damp; with ``cut="absolute"`` θ itself.
        beta: Extra weight of the highest score, at least 0.
        floor: Least weight before the renormalisation, in (0, 1].
        cut: ``quantile`` or ``absolute``.
        preserve: Whether to give the weights of a row the mean 1.
        min_tokens: Rows with fewer masked tokens get weights of 1.
        backend: As in ``shape_advantages``; Triton, the native module and torch have this op.

    Returns:
        (N, T) detached weights, > 0; 1 outside the mask and in rows of equal scores. A masked score that is NaN or
        infinite makes the weights of its own row's masked tokens NaN, and no other's.

    Raises:
        ValueError: An option outside its range, shapes or devices that differ, or a backend that is not available.
        TypeError: Scores that are not floating, a mask that is not bool.

    Example:
        >>> s = torch.tensor([[0.0, 1.0, 1.0, 3.0]])
        >>> oar_reshape(s, torch.ones(1, 4, dtype=torch.bool))
        tensor([[0.0889, 1.0667, 1.0667, 1.7778]])

    Source: arXiv 2601.07408, the released reshaping rule with its quantile level kept the same for every row.
    """
    checks.floats("scores", scores)
    checks.matrix("scores", scores)
    checks.mask(mask, scores.shape, scores.device)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must lie in [0, 1], got {quantile}")
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta must be a number of at least 0, got {beta}")
    if not 0 < floor <= 1:
        raise ValueError(f"floor must lie in (0, 1], got {floor}")
    if cut not in CUTS:
        raise ValueError(f"cut must be one of {', '.join(CUTS)}, got {cut!r}")
    if min_tokens < 0:
        raise ValueError(f"min_tokens must be at least 0, got {min_tokens}")
    return token_ops.oar_rows(
        scores, mask, float(quantile), float(beta), float(floor), cut == "absolute", preserve, min_tokens, backend
    )
