"""Where to branch a rollout: branching_score() of each token, topk_branch() of the best of them."""

from __future__ import annotations

import torch
from torch import Tensor

from stepopsd.ops import checks
from stepopsd.ops.torch_tokens import branching

PER = ("row", "prompt")


@torch.no_grad()
def branching_score(
    future: Tensor, entropies: Tensor, mask: Tensor, *, gate: bool = True, std_eps: float = 1e-6
) -> Tensor:
    """Z(future)·Z(entropy) over each row's own tokens: uncertain here, and a future that the newer policy favours.

    Args:
        future: (N, T) float, clipped future ratios, see ``future_value`` (with low=0.8 for this purpose).
        entropies: (N, T) float, nats.
        mask: (N, T) bool, sampled tokens; others are not read and are no candidates.
        gate: Only tokens with both z-scores above 0 are candidates. Without it the product of two negative ones counts.
        std_eps: A standard deviation (the population's) of at most this makes a row degenerate. Where that of the
            future is, the score is Z(entropy) of every token, without a gate; a degenerate entropy has z-scores of 0.

    Returns:
        (N, T) detached; -inf where a token is no candidate. NaN in a row makes the scores of its masked tokens NaN.

    Raises:
        ValueError: Shapes or devices that differ, std_eps below 0.
        TypeError: Values that are not floating, a mask that is not bool.

    Example:
        >>> h = torch.tensor([[0.1, 2.0, 0.3, 1.9]])
        >>> branching_score(torch.tensor([[0.9, 1.2, 1.2, 0.8]]), h, torch.ones(1, 4, dtype=torch.bool))
        tensor([[  -inf, 1.0320,   -inf,   -inf]])

    Source: arXiv 2606.12384, Eq. 5; the gate is the released code's.
    """
    checks.floats("future", future)
    checks.matrix("future", future)
    checks.floats("entropies", entropies)
    checks.rows("entropies", entropies, future.shape, future.device)
    checks.mask(mask, future.shape, future.device)
    if not std_eps >= 0:
        raise ValueError(f"std_eps must be at least 0, got {std_eps}")
    wide = torch.float64 if torch.float64 in (future.dtype, entropies.dtype) else torch.float32
    return branching(future.to(wide), entropies.to(wide), mask, gate, std_eps)


@torch.no_grad()
def topk_branch(
    scores: Tensor,
    k: int,
    *,
    per: str = "row",
    group_ids: Tensor | None = None,
    min_gap: int = 0,
    fallback: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best branching positions of each row, or of all rows of each prompt.

    Args:
        scores: (N, T) float, see ``branching_score``; -inf and NaN are never chosen.
        k: Positions per row or per prompt, at least 0; fewer where there are fewer candidates.
        per: ``row`` or ``prompt``.
        group_ids: (N,) int, the prompt of each row; only for ``per="prompt"``.
        min_gap: Positions chosen in one row lie at least this far apart.
        fallback: (N, T) float, ranks the tokens to take where candidates run out; -inf and NaN are never chosen.

    Returns:
        rows, positions: (K,) int64, and their scores (K,) of the dtype of ``scores``: -inf for a fallback. Ordered by
        row or prompt and there by choice, the best first; of equal scores the first token of the first row is taken.

    Raises:
        ValueError: An option outside its range, group_ids missing or not asked for, shapes that differ.
        TypeError: Scores that are not floating, group_ids that are not int64 or int32.

    Example:
        >>> rows, positions, best = topk_branch(torch.tensor([[0.1, 2.0, 1.5]]), 2)
        >>> positions.tolist()
        [1, 2]

    Source: arXiv 2606.12384, Algorithm 1 (per row); its released code pools per prompt.
    """
    _check_choice(scores, k, per, group_ids, min_gap, fallback)
    rows, width = scores.shape
    groups = torch.arange(rows, device=scores.device) if group_ids is None else group_ids.long()
    names, group = torch.unique(groups, return_inverse=True)
    left = [_ranked(x) for x in (scores, fallback) if x is not None]
    chosen: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(k if scores.numel() else 0):
        places, values = _best_per_group(left, group, len(names))
        found = places >= 0
        if not bool(found.any()):
            break
        row, position = places[found] // width, places[found] % width
        chosen.append((row, position, torch.where(values[found], scores[row, position], -torch.inf)))
        columns = torch.arange(width, device=scores.device)
        near = (columns - position[:, None]).abs() < max(1, min_gap)
        for x in left:
            x[row] = x[row].masked_fill(near, -torch.inf)
    if not chosen:
        nothing = torch.empty(0, dtype=torch.int64, device=scores.device)
        return nothing, nothing.clone(), scores.new_zeros(0)
    row, position, value = (torch.cat(parts) for parts in zip(*chosen, strict=True))
    order = group[row].argsort(stable=True)
    return row[order], position[order], value[order]


def _ranked(scores: Tensor) -> Tensor:
    return scores.detach().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).clone()


def _best_per_group(left: list[Tensor], group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Per group the flat place of its best token, -1 without one; and whether it is no fallback."""
    place = torch.full((groups,), -1, dtype=torch.int64, device=group.device)
    genuine = torch.zeros(groups, dtype=torch.bool, device=group.device)
    for level, x in enumerate(left):
        value, position = x.max(-1)  # the first of equal values
        best = value.new_full((groups,), -torch.inf).scatter_reduce(0, group, value, "amax")
        rows = torch.arange(len(group), device=group.device)
        first = torch.full_like(place, len(group))
        mine = (value == best[group]) & (value > -torch.inf)
        first = first.scatter_reduce(0, group[mine], rows[mine], "amin")
        take = (place < 0) & (first < len(group))
        row = first.clamp(max=len(group) - 1)
        place = torch.where(take, row * x.shape[1] + position[row], place)
        genuine |= take & (level == 0)
    return place, genuine


def _check_choice(
    scores: Tensor, k: int, per: str, group_ids: Tensor | None, min_gap: int, fallback: Tensor | None
) -> None:
    checks.floats("scores", scores)
    checks.matrix("scores", scores)
    for name, value in (("k", k), ("min_gap", min_gap)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    if per not in PER:
        raise ValueError(f"per must be one of {', '.join(PER)}, got {per!r}")
    if (per == "prompt") != (group_ids is not None):
        raise ValueError(f"group_ids must be given with per='prompt', and only then, got per={per!r}")
    if group_ids is not None:
        checks.integers("group_ids", group_ids)
        checks.rows("group_ids", group_ids, scores.shape[:1], scores.device)
    if fallback is not None:
        checks.floats("fallback", fallback)
        checks.rows("fallback", fallback, scores.shape, scores.device)
