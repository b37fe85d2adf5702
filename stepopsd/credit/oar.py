"""OAR: tokens that move the model's own answer get more of their row's advantage (arXiv 2601.07408)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from stepopsd.credit.base import CreditInputs, CreditMethod, CreditResult, broadcast_advantages, register
from stepopsd.ops.oar_reshape import oar_reshape

#: Extras: (N, T) float32, NaN where a token was not scored.
BY_REPLACEMENT, BY_GRADIENT = "outcome_by_replacement", "outcome_by_gradient"


@dataclass(frozen=True)
class Oar(CreditMethod):
    """Bi-level reshaping of outcome scores: ``oar_p`` gets them by replacing tokens, ``oar_g`` by one gradient.

    A row's advantage mass stays what it was: weights have the mean 1 over the scored tokens and are 1 elsewhere. Equal
    scores, and rows without any, leave GRPO.

    Attributes:
        scores: Name of the extra that holds them.
        quantile, beta, floor, cut, preserve, min_tokens: See ``stepopsd.ops.oar_reshape``.
    """

    scores: str = BY_GRADIENT
    quantile: float = 0.25
    beta: float = 1.0
    floor: float = 0.1
    cut: str = "quantile"
    preserve: bool = True
    min_tokens: int = 4

    def needs(self, update: int) -> frozenset[str]:
        return frozenset((self.scores,))

    def assign(self, inputs: CreditInputs) -> CreditResult:
        plain = broadcast_advantages(inputs.advantages, inputs.response_mask)
        scores = inputs.extras[self.scores]
        scored = ~scores.isnan() & inputs.response_mask
        weights = self._reshaped(scores, scored, preserve=self.preserve)
        metrics = weight_metrics(weights, scored, -inputs.old_logprobs)
        if bool(scored.any()):
            tiers = weights if not self.preserve else self._reshaped(scores, scored, preserve=False)
            metrics["oar/at_floor"] = (tiers[scored] <= self.floor * (1 + 1e-6)).float().mean()
        return CreditResult(plain * weights, metrics, {"outcome_scores": scores, "weights": weights}, weights)

    def _reshaped(self, scores: Tensor, scored: Tensor, *, preserve: bool) -> Tensor:
        return oar_reshape(
            scores, scored, quantile=self.quantile, beta=self.beta, floor=self.floor, cut=self.cut, preserve=preserve,
            min_tokens=self.min_tokens,
        )  # fmt: skip


def weight_metrics(weights: Tensor, scored: Tensor, surprise: Tensor) -> dict[str, Any]:
    """What the weights look like.

    Args:
        weights: (N, T), 1 where not scored.
        scored: (N, T) bool.
        surprise: (N, T) -log-prob of each token.

    Returns:
        ``oar/rows``, number of rows with scored tokens, and over these tokens ``oar/ess``, the mean over rows of
        (Σw)² / (L Σw²); ``oar/damped``, the share below 1; extremes; ``oar/surprise_correlation``.
    """
    rows = scored.any(1)
    if not bool(rows.any()):
        return {"oar/rows": 0}
    w = weights.double().where(scored, 0)[rows]
    ess = w.sum(1).square() / (scored[rows].sum(1) * w.square().sum(1))
    inside = weights[scored]
    return {
        "oar/rows": int(rows.sum()),
        "oar/ess": ess.mean(),
        "oar/damped": (inside < 1).float().mean(),
        "oar/min": inside.min(),
        "oar/max": inside.max(),
        "oar/surprise_correlation": correlation(inside, surprise[scored]),
    }


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's, 0 where one of the two does not vary."""
    x, y = (v.double() - v.double().mean() for v in (x, y))
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return torch.where(scale > 0, (x * y).sum() / scale.clamp(min=torch.finfo(torch.float64).tiny), 0)


def draw_agreement(scores: Tensor) -> Tensor | None:
    """Spearman's rank correlation of the scores that a row gets from one draw of noise and the next.

    Args:
        scores: (D, N, T) float, NaN where a token was not scored.

    Returns:
        0-d, the mean over successive draws and rows with at least three scored tokens; None where there is nothing to
        compare.
    """
    found = []
    for row in scores.unbind(1):
        values = row[:, ~row[0].isnan()]
        if values.shape[1] >= 3:
            ranks = values.argsort(1).argsort(1)
            found += [correlation(a, b) for a, b in pairwise(ranks)]
    return torch.stack(found).mean() if found else None


def _build(options: Mapping[str, Any], scores: str) -> Oar:
    own = options["oar"]
    return Oar(scores, **{name: own[name] for name in ("quantile", "beta", "floor", "cut", "preserve", "min_tokens")})


@register("oar_p")
def build_p(options: Mapping[str, Any]) -> Oar:
    """OAR with scores by replacement, from the ``credit`` section; the scorer's own options are the trainer's."""
    return _build(options, BY_REPLACEMENT)


@register("oar_g")
def build_g(options: Mapping[str, Any]) -> Oar:
    """OAR with scores by gradient, from the ``credit`` section; the scorer's own options are the trainer's."""
    return _build(options, BY_GRADIENT)
