"""Intervals for success rates and for paired differences between runs; numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

MIN_SEEDS_FOR_SPREAD = 3


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence limits; ``n`` counts the observations behind it."""

    estimate: float
    low: float
    high: float
    n: int

    def contains(self, value: float) -> bool:
        """Whether ``value`` lies between the limits, both included."""
        return self.low <= value <= self.high

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a success rate; it keeps its width at 0 of n and n of n.

    Args:
        successes: Number of successes, 0 to ``trials``.
        trials: Number of independent trials; 0 gives an estimate of NaN between 0 and 1.
        confidence: Coverage in (0, 1).

    Returns:
        Estimate ``successes / trials`` with limits inside [0, 1].

    Raises:
        ValueError: Counts that cannot be, or a confidence outside (0, 1).

    Example:
        >>> band = wilson_interval(107, 128)
        >>> round(band.low, 3), round(band.high, 3)
        (0.762, 0.89)

    Source: E. B. Wilson, JASA 22 (1927).
    """
    _check_confidence(confidence)
    if trials < 0 or not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0..trials and trials be >= 0, got {successes} of {trials}")
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    return _wilson(successes / trials, trials, trials, confidence)


def panel_interval(outcomes: Sequence[Sequence[bool]], *, confidence: float = 0.95) -> Interval:
    """Wilson interval of the success rate on a panel whose games were played several times each.

    Episodes of one game are alike, so they count for less than as many games: the Wilson formula gets the effective
    number of episodes p(1 - p) / v, where v is the variance of the rate between games. It lies between the number of
    games and the number of episodes; with one episode per game this is ``wilson_interval``.

    Args:
        outcomes: Per game, the success flags of its episodes; games without episodes are left out.
        confidence: Coverage in (0, 1).

    Returns:
        Share of won episodes with limits inside [0, 1]; ``n`` counts episodes. NaN between 0 and 1 without any.

    Raises:
        ValueError: A confidence outside (0, 1).

    Example:
        >>> panel_interval([[True, True], [False, False]]) == panel_interval([[True], [False]])
        False
        >>> round(panel_interval([[True, True], [False, False]]).low, 3)
        0.095

    Source: C. Franco, R. J. A. Little, T. A. Louis, E. V. Slud, J. Survey Statistics and Methodology 7 (2019).
    """
    _check_confidence(confidence)
    games = [np.asarray(game, dtype=bool) for game in outcomes if len(game)]
    if not games:
        return wilson_interval(0, 0, confidence=confidence)
    played = np.array([game.size for game in games], dtype=np.float64)
    won = np.array([game.sum() for game in games], dtype=np.float64)
    episodes, rate = int(played.sum()), float(won.sum() / played.sum())
    effective = float(len(games))
    if 0.0 < rate < 1.0 and len(games) > 1:
        spread = ((won - rate * played) ** 2).sum() / played.sum() ** 2 * len(games) / (len(games) - 1)
        effective = min(float(episodes), max(effective, rate * (1 - rate) / spread)) if spread else float(episodes)
    return _wilson(rate, effective, episodes, confidence)


def _wilson(rate: float, trials: float, n: int, confidence: float) -> Interval:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    shrink = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # At the ends the limit equals the rate exactly; the formula leaves a rounding error there.
    low = 0.0 if rate == 0.0 else max(0.0, centre - half)
    high = 1.0 if rate == 1.0 else min(1.0, centre + half)
    return Interval(rate, low, high, n)


def student_quantile(freedom: int, confidence: float = 0.95) -> float:
    """Two-sided Student quantile: P(|T| < q) = ``confidence`` for a whole number of degrees of freedom.

    Args:
        freedom: Degrees of freedom, at least 1.
        confidence: Coverage in (0, 1).

    Returns:
        The quantile, e.g. 4.303 for 2 degrees of freedom and 0.95.

    Raises:
        ValueError: ``freedom`` below 1 or a confidence outside (0, 1).

    Source: the finite trigonometric sums of Abramowitz & Stegun 26.7.3-4, inverted by bisection.
    """
    _check_confidence(confidence)
    if freedom < 1:
        raise ValueError(f"freedom must be at least 1, got {freedom}")
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_coverage(middle, freedom) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def success_interval(
    outcomes: Sequence[Sequence[bool]], *, games: Sequence[Sequence[str]] | None = None, confidence: float = 0.95
) -> Interval:
    """Success rate of one method on one panel, from one list of episode outcomes per training run.

    With fewer than three runs the band is ``panel_interval`` of all episodes: it covers the evaluation, not
    a repeat of the training. From three runs on it is the Student interval over the runs' rates, never
    narrower than that, so that runs which happen to agree do not fake certainty.

    Args:
        outcomes: Per run, the episodes' success flags; empty runs are left out.
        games: Per run, the game of each episode: those of one game, in whatever run, count for as much as they
            differ. None takes every episode for a game of its own.
        confidence: Coverage in (0, 1).

    Returns:
        Mean of the runs' rates with limits inside [0, 1]; NaN between 0 and 1 without episodes.

    Raises:
        ValueError: A confidence outside (0, 1), or ``games`` of another shape than ``outcomes``.

    Example:
        >>> success_interval([[True, False, True, True]]).estimate
        0.75
    """
    if games is not None:
        _check_lengths("games", games, outcomes)
    runs = [np.asarray(run, dtype=bool) for run in outcomes if len(run)]
    pooled = panel_interval(_clusters(outcomes, games), confidence=confidence)
    if not runs:
        return pooled
    rates = np.array([run.mean() for run in runs])
    mean = float(rates.mean())
    low, high = min(pooled.low, mean), max(pooled.high, mean)
    half = _seed_half_width(rates, confidence)
    return Interval(mean, min(low, max(0.0, mean - half)), max(high, min(1.0, mean + half)), pooled.n)


def success_by_kind(
    kinds: Sequence[Sequence[str]],
    outcomes: Sequence[Sequence[bool]],
    *,
    games: Sequence[Sequence[str]] | None = None,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """``success_interval`` per task type, types in alphabetical order.

    Args:
        kinds: Per run, the task type of each episode.
        outcomes: Per run, the success flag of each episode; same shape as ``kinds``.
        games: As for ``success_interval``.
        confidence: Coverage in (0, 1).

    Returns:
        Task type -> interval whose ``n`` is the number of episodes of that type over all runs.

    Raises:
        ValueError: ``kinds``, ``outcomes`` and ``games`` do not have the same lengths.
    """
    _check_lengths("kinds", kinds, outcomes)
    if games is not None:
        _check_lengths("games", games, outcomes)
    table = {}
    for kind in sorted({kind for run in kinds for kind in run}):
        chosen = [[i for i, name in enumerate(names) if name == kind] for names in kinds]
        won = [[run[i] for i in own] for run, own in zip(outcomes, chosen, strict=True)]
        played = games and [[run[i] for i in own] for run, own in zip(games, chosen, strict=True)]
        table[kind] = success_interval(won, games=played, confidence=confidence)
    return table


def macro_interval(
    kinds: Sequence[Sequence[str]],
    outcomes: Sequence[Sequence[bool]],
    *,
    games: Sequence[Sequence[str]] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Plain mean over task types or question sets, each of them for one vote.

    Args:
        kinds, outcomes, games, confidence: As for ``success_by_kind``.

    Returns:
        Mean of the types' rates; the limits add the types' half widths in squares, and from three runs on are never
        narrower than the Student interval over the runs' means. NaN between 0 and 1 without episodes.

    Raises:
        ValueError: As ``success_by_kind``.

    Example:
        >>> macro_interval([["nq", "nq", "nq", "bamboogle"]], [[True, True, True, False]]).estimate
        0.5

    Source: G. Y. Zou, A. Donner, Statistics in Medicine 27 (2008).
    """
    parts = list(success_by_kind(kinds, outcomes, games=games, confidence=confidence).values())
    if not parts:
        return wilson_interval(0, 0, confidence=confidence)
    mean = float(np.mean([part.estimate for part in parts]))
    below = math.hypot(*(part.estimate - part.low for part in parts)) / len(parts)
    above = math.hypot(*(part.high - part.estimate for part in parts)) / len(parts)
    means = [
        float(np.mean([part.estimate for part in success_by_kind([names], [flags]).values()]))
        for names, flags in zip(kinds, outcomes, strict=True) if len(flags)
    ]  # fmt: skip
    half = _seed_half_width(np.array(means), confidence)
    low, high = max(0.0, mean - max(below, half)), min(1.0, mean + max(above, half))
    return Interval(mean, low, high, sum(part.n for part in parts))


def success_matrix(runs: Sequence[Mapping[str, Sequence[bool]]], games: Sequence[str]) -> np.ndarray:
    """Mean success per training run and game.

    Args:
        runs: Per run, game -> success flags of its episodes.
        games: The games wanted, each present in every run.

    Returns:
        (runs, games) float64.

    Raises:
        ValueError: A run has no episode of one of the games.
    """
    for index, run in enumerate(runs):
        absent = [game for game in games if not run.get(game)]
        if absent:
            raise ValueError(f"run {index} has no episode of {len(absent)} of the games, e.g. {absent[0]!r}")
    rates = [[float(np.mean(run[game])) for game in games] for run in runs]
    return np.array(rates, dtype=np.float64).reshape(len(runs), len(games))


def paired_difference(
    baseline: np.ndarray,
    candidate: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Interval:
    """Mean of ``candidate - baseline`` with a bootstrap interval over games and training seeds.

    Each resample draws games with replacement and, independently, seeds with replacement; both sides use the
    same draw, so what a game or a seed does to both cancels. With one seed only games are drawn, and the
    interval says nothing about a repeat of the training. From three seeds on the limits are never narrower than
    the Student interval over the seeds' differences: resampling a handful of seeds understates their spread.

    A game is a cluster: all its episodes come along when it is drawn, so any number of samples per game is fine.

    Args:
        baseline: (seeds, games) mean over a game's episodes, of success (0 to 1) or any other figure.
        candidate: (seeds, games), same seeds and games in the same order.
        confidence: Coverage in (0, 1).
        resamples: Bootstrap resamples, at least 1.
        seed: Seed of the resampling; equal seeds give equal limits.
        bounds: Smallest and largest difference that there can be.

    Returns:
        Mean difference and limits inside ``bounds``; ``n`` is the number of games. NaN when there are no games.

    Raises:
        ValueError: Shapes differ or are not two-dimensional, NaN in the input, or an argument out of range.

    Example:
        >>> paired_difference(np.zeros((1, 20)), np.ones((1, 20))).low
        1.0

    Source: the crossed ("pigeonhole") bootstrap, A. B. Owen, Annals of Applied Statistics 1 (2007).
    """
    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if baseline.ndim != 2 or baseline.shape != candidate.shape:
        raise ValueError(
            f"baseline and candidate must both be (seeds, games), got {baseline.shape} and {candidate.shape}"
        )
    difference = candidate - baseline
    seeds, games = difference.shape
    if seeds == 0 or games == 0:
        return Interval(math.nan, *bounds, games)
    if not np.isfinite(difference).all():
        raise ValueError("baseline and candidate must be finite, got NaN or infinity")
    random = np.random.default_rng(seed)
    game_draws = random.multinomial(games, np.full(games, 1 / games), size=resamples)  # (R, games)
    seed_draws = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)  # (R, seeds)
    means = ((game_draws @ difference.T) * seed_draws).sum(axis=1) / (seeds * games)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = float(difference.mean())
    half = _seed_half_width(difference.mean(axis=1), confidence)
    least, most = bounds
    return Interval(mean, min(float(low), max(least, mean - half)), max(float(high), min(most, mean + half)), games)


def detectable(difference: Interval, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """The true difference that a comparison of this size would have shown with probability ``power``.

    Args:
        difference: Result of ``paired_difference``; only its width counts.
        confidence: Coverage of that interval.
        power: Probability in (0, 1) that the interval excludes 0.

    Returns:
        (z_confidence + z_power) / z_confidence half widths, in the unit of the interval.

    Raises:
        ValueError: A confidence or power outside (0, 1).

    Example:
        >>> round(detectable(Interval(0.0, -0.1, 0.1, 50)), 3)
        0.143
    """
    _check_confidence(confidence)
    if not 0 < power < 1:
        raise ValueError(f"power must lie in (0, 1), got {power}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return (z + NormalDist().inv_cdf(power)) / z * difference.half_width


def verdict(
    difference: Interval, *, candidate: str, baseline: str, panel: str, seeds: int, confidence: float = 0.95
) -> str:
    """The sentence that a paired difference allows, with what it does not allow said plainly.

    Args:
        difference: Result of ``paired_difference``.
        candidate, baseline: Names of the two methods.
        panel: Name of the evaluation panel.
        seeds: Training seeds behind each side.
        confidence: Coverage of the interval.

    Returns:
        One to three English sentences, plain text.
    """
    if seeds == 0 or math.isnan(difference.estimate):
        return f"{candidate} and {baseline} have no {panel} game and seed in common: nothing can be compared."
    size = f"{difference.n} game{'s' * (difference.n != 1)} × {seeds} seed{'s' * (seeds != 1)}"
    sentences = [
        f"{candidate} minus {baseline} on {panel}: {_points(difference.estimate)} points "
        f"({100 * confidence:g} % interval {_points(difference.low)} to {_points(difference.high)}; {size})."
    ]
    if difference.contains(0.0):
        sentences.append(
            "The interval contains 0, so no difference is shown; at this size one below about "
            f"{100 * difference.half_width:.0f} points would stay unseen."
            if difference.half_width
            else "The two did equally well on every game, so no difference is shown."
        )
    else:
        side = "higher" if difference.estimate > 0 else "lower"
        sentences.append(f"The interval excludes 0: {candidate} is {side} on these games.")
    if seeds == 1:
        sentences.append(
            "One seed is not evidence: the interval covers the choice of games, not what another training "
            "run of either method would give."
        )
    elif seeds < MIN_SEEDS_FOR_SPREAD:
        sentences.append(f"{seeds} seeds are too few to tell a method from a lucky run.")
    return " ".join(sentences)


def _seed_half_width(values: np.ndarray, confidence: float) -> float:
    """Half width of the Student interval over one value per seed; 0 below three seeds, where it says nothing."""
    if values.size < MIN_SEEDS_FOR_SPREAD:
        return 0.0
    return student_quantile(values.size - 1, confidence) * float(values.std(ddof=1)) / math.sqrt(values.size)


def _points(share: float) -> str:
    text = f"{100 * share:+.1f}"
    return "0.0" if text[1:] == "0.0" else text.replace("-", "−")


def _clusters(outcomes: Sequence[Sequence[bool]], games: Sequence[Sequence[str]] | None) -> list[list[bool]]:
    """The flags of each game over all runs; of each episode without ``games``."""
    if games is None:
        return [[won] for run in outcomes for won in run]
    found: dict[str, list[bool]] = {}
    for names, flags in zip(games, outcomes, strict=True):
        for name, won in zip(names, flags, strict=True):
            found.setdefault(name, []).append(bool(won))
    return list(found.values())


def _check_lengths(name: str, given: Sequence[Sequence[str]], outcomes: Sequence[Sequence[bool]]) -> None:
    if [len(run) for run in given] != [len(run) for run in outcomes]:
        raise ValueError(
            f"{name} and outcomes must have equal lengths per run, got {[len(run) for run in given]} and "
            f"{[len(run) for run in outcomes]}"
        )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")


def _student_coverage(angle: float, freedom: int) -> float:
    """P(|T| < tan(angle) * sqrt(freedom)) for a whole number of degrees of freedom."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for index in range(1 + odd, freedom, 2):
        total += term
        term *= (index / (index + 1)) * cosine * cosine
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
