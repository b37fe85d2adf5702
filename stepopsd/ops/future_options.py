"""Options of the future value and the branching score, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

HALF_LIFE_32 = 2.0 ** (-1 / 32)  # γ of arXiv 2606.12384
DECAYS = ("position", "valid")


@dataclass(frozen=True, slots=True)
class FutureOptions:
    """What ``future_value`` and ``future_branching`` compute; see these for the meaning of each.

    Raises:
        ValueError: A value outside its range.
    """

    gamma: float = HALF_LIFE_32
    low: float = 1.0
    high: float = 1.2
    branch_low: float = 0.8
    branch_high: float = 1.2
    log_clamp: float = 20.0
    max_log_ratio: float | None = None
    decay: str = "position"
    gate: bool = True
    std_eps: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")
        for name, low, high in (("", self.low, self.high), ("branch_", self.branch_low, self.branch_high)):
            if not 1e-30 <= low <= 1 <= high <= 1e30:
                allowed = f"1e-30 <= {name}low <= 1 <= {name}high <= 1e30"
                raise ValueError(f"{name}low and {name}high must satisfy {allowed}, got {low}, {high}")
        if not 0 < self.log_clamp < math.inf:
            raise ValueError(f"log_clamp must be a positive number, got {self.log_clamp}")
        if self.max_log_ratio is not None and not self.max_log_ratio > 0:
            raise ValueError(f"max_log_ratio must be positive or None, got {self.max_log_ratio}")
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {self.decay!r}")
        if not 0 <= self.std_eps < math.inf:
            raise ValueError(f"std_eps must be a number of at least 0, got {self.std_eps}")

    @property
    def drop_above(self) -> float:
        """Log-ratio above which a token is left out of the sums."""
        return math.inf if self.max_log_ratio is None else self.max_log_ratio
