"""future_value() and future_branching(): discounted future log-ratios of tokens, and branching scores made of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stepopsd.ops import checks, token_ops
from stepopsd.ops.future_options import HALF_LIFE_32, FutureOptions

__all__ = ["HALF_LIFE_32", "FutureBranching", "future_branching", "future_value"]


@dataclass(frozen=True, slots=True)
class FutureBranching:
    """Result of ``future_branching``, detached.

    Attributes:
        future: (N, T) clipped future ratios, 1 outside the mask.
        scores: (N, T) branching scores, -inf where a token is no candidate.
    """

    future: Tensor
    scores: Tensor


def future_value(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    *,
    gamma: float = HALF_LIFE_32,
    low: float = 1.0,
    high: float = 1.2,
    log_clamp: float = 20.0,
    max_log_ratio: float | None = None,
    decay: str = "position",
    backend: str = "auto",
) -> Tensor:
    """F_t = clip(exp(Σ_{j >= t} γ^(j - t) log ρ_j), low, high) with ρ_j = π(y_j) / π_old(y_j): one reverse scan.

    Args:
        logprobs: (N, T) float, log-probs of the row's own tokens under the current policy. Computed in float32,
            float64 stays float64.
        old_logprobs: (N, T) float, under the policy that sampled them.
        mask: (N, T) bool, sampled tokens. Others are not read and add nothing.
        gamma: In (0, 1]; the default halves within 32 tokens.
        low, high: Bounds of F, 1e-30 <= low <= 1 <= high <= 1e30.
        log_clamp: log ρ of a token is clamped to ± this.
        max_log_ratio: Tokens whose log ρ is above it add nothing; None keeps all.
        decay: ``position``: masked tokens count as distance (j - t is the distance in the row); ``valid``: they do not.
        backend: As in ``oar_reshape``.

    Returns:
        (N, T) detached, in [low, high]; 1 outside the mask, and everywhere when both policies agree. NaN in a masked
        token makes the F of this and of the row's earlier tokens NaN.

    Raises:
        ValueError: An option outside its range, shapes or devices that differ, or a backend that is not available.
        TypeError: Log-probs that are not floating, a mask that is not bool.

    Example:
        >>> new, old = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -1.1]])
        >>> future_value(new, old, torch.ones(1, 2, dtype=torch.bool), gamma=0.5, high=2.0)
        tensor([[1.0513, 1.1052]])

    Source: arXiv 2606.12384, Eqs. 4 and 7.
    """
    options = FutureOptions(
        gamma=gamma, low=low, high=high, log_clamp=log_clamp, max_log_ratio=max_log_ratio, decay=decay
    )
    _check(logprobs, old_logprobs, mask)
    return token_ops.future_rows(logprobs, old_logprobs, mask, None, options, backend)[0]


def future_branching(
    logprobs: Tensor,
    old_logprobs: Tensor,
    entropies: Tensor,
    mask: Tensor,
    *,
    gamma: float = HALF_LIFE_32,
    low: float = 1.0,
    high: float = 1.2,
    branch_low: float = 0.8,
    branch_high: float = 1.2,
    log_clamp: float = 20.0,
    max_log_ratio: float | None = None,
    decay: str = "position",
    gate: bool = True,
    std_eps: float = 1e-6,
    backend: str = "auto",
) -> FutureBranching:
    """``future_value`` and the ``branching_score`` of the same scan, in one kernel.

    The score is made of the same sums with a clip of its own, [branch_low, branch_high].

    Args:
        entropies: (N, T) float, of the current policy at each token; not read outside the mask.
        gate, std_eps: See ``branching_score``.

    Other arguments, errors and the treatment of invalid tokens are those of ``future_value``; NaN in a row makes the
    scores of its masked tokens NaN.

    Returns:
        ``FutureBranching``.

    Example:
        >>> x = future_branching(new, old, entropies, mask)
        >>> rows, positions, _ = topk_branch(x.scores, 3)

    Source: arXiv 2606.12384, Eqs. 4, 5 and 7.
    """
    options = FutureOptions(
        gamma=gamma, low=low, high=high, branch_low=branch_low, branch_high=branch_high, log_clamp=log_clamp,
        max_log_ratio=max_log_ratio, decay=decay, gate=gate, std_eps=std_eps,
    )  # fmt: skip
    _check(logprobs, old_logprobs, mask)
    checks.floats("entropies", entropies)
    checks.rows("entropies", entropies, logprobs.shape, logprobs.device)
    future, scores = token_ops.future_rows(logprobs, old_logprobs, mask, entropies, options, backend).unbind(0)
    return FutureBranching(future, scores)


def _check(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> None:
    checks.floats("logprobs", logprobs)
    checks.matrix("logprobs", logprobs)
    checks.floats("old_logprobs", old_logprobs)
    checks.rows("old_logprobs", old_logprobs, logprobs.shape, logprobs.device)
    checks.mask(mask, logprobs.shape, logprobs.device)
