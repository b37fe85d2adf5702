"""What the probe says about a method: its share of credit on the deciding turn, its agreement with the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stepopsd.experiments.statistics import Interval


@dataclass(frozen=True, slots=True)
class Credited:
    """The tokens of one row as a method sees them.

    Attributes:
        group: Game and seed that the row's episode shares with others: the unit of resampling.
        advantages: (T,) of the method, of every token that is trained.
        decisive: (T,) bool, tokens of the turn that decides.
        truth: (T,) Monte-Carlo advantages, NaN where they were not estimated.
    """

    group: int
    advantages: np.ndarray
    decisive: np.ndarray
    truth: np.ndarray


def decisive_share(rows: Sequence[Credited]) -> Interval:
    """Share of the sum of |advantage| that lies on the deciding turn, with a 95 % bootstrap over groups.

    NaN where no token has an advantage.
    """
    sums = _sums(rows, lambda r: [np.abs(r.advantages[r.decisive]).sum(), np.abs(r.advantages).sum()])

    def share(weights: np.ndarray) -> np.ndarray:
        on, everywhere = (weights @ sums).T
        return np.divide(on, everywhere, out=np.full_like(on, np.nan), where=everywhere > 0)

    return _bootstrap(len(sums), share)


def agreement(rows: Sequence[Credited]) -> Interval:
    """Pearson correlation of the method's advantages with the Monte-Carlo ones over all tokens that have both.

    With a 95 % bootstrap over groups; NaN where either does not vary.
    """
    sums = _sums(rows, _moments)
    return _bootstrap(len(sums), lambda weights: _correlation(weights, sums))


def agreement_gain(rows: Sequence[Credited], reference: Sequence[Credited]) -> Interval:
    """``agreement`` of the rows minus that of the reference, the same groups drawn for both.

    Raises:
        ValueError: The two are not of the same groups.
    """
    if {r.group for r in rows} != {r.group for r in reference}:
        raise ValueError("rows and reference must be of the same groups")
    own, other = _sums(rows, _moments), _sums(reference, _moments)
    return _bootstrap(len(own), lambda weights: _correlation(weights, own) - _correlation(weights, other))


def _moments(row: Credited) -> list[float]:
    known = ~np.isnan(row.truth)
    a, b = row.advantages[known], row.truth[known]
    return [known.sum(), a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()]


def _correlation(weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """(R,) of (R, groups) weights and (groups, 6) sums of ``_moments``."""
    n, a, b, aa, bb, ab = (weights @ sums).T
    spread = (n * aa - a * a) * (n * bb - b * b)
    top = n * ab - a * b
    return np.divide(top, np.sqrt(np.maximum(spread, 0)), out=np.full_like(top, np.nan), where=spread > 1e-12)


def _sums(rows: Sequence[Credited], figures: Callable[[Credited], list[float]]) -> np.ndarray:
    """(groups, figures) sums over the rows of each group."""
    names, member = np.unique([row.group for row in rows], return_inverse=True)
    values = np.array([figures(row) for row in rows], dtype=np.float64)
    out = np.zeros((len(names), values.shape[1]))
    np.add.at(out, member, values)
    return out


def _bootstrap(
    groups: int, figure: Callable[[np.ndarray], np.ndarray], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """``figure`` of (R, groups) weights, whole groups drawn with replacement; the same draws at every call."""
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    estimate = float(figure(np.ones((1, groups)))[0])
    spread = figure(draws.astype(np.float64))
    spread = spread[~np.isnan(spread)]
    if np.isnan(estimate) or not spread.size:
        return Interval(np.nan, np.nan, np.nan, groups)
    low, high = np.quantile(spread, [0.025, 0.975])
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), groups)
