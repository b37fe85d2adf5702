"""What shape_advantages returns: shaped advantages, the quantities they came from, and statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# The order in which every backend writes them.
STATISTICS = (
    "count", "nonfinite", "delta_mean", "delta_std", "delta_min", "delta_max", "delta_abs_mean", "weight_mean",
    "weight_std", "weight_min", "weight_max", "at_low", "at_high", "steps", "scale_min", "scale_max", "scale_clamped",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShapingStats:
    """Statistics of one call as 0-d float64 tensors on the input's device; nothing here waits for the device.

    Moments cover active tokens whose Δ and w are finite; they are 0 where there is none, so read ``count`` first.

    Attributes:
        packed: (17,) float64, all of them in the order of ``STATISTICS``:
            ``count``: active tokens with finite Δ and w. ``nonfinite``: active tokens left out.
            ``delta_mean``, ``delta_std``, ``delta_min``, ``delta_max``, ``delta_abs_mean``: of Δ; std is the
            population's. ``weight_mean``, ``weight_std``, ``weight_min``, ``weight_max``: of the clipped weight w.
            ``at_low``, ``at_high``: share of counted tokens with w at 1 - α and at 1 + α (to 1e-6).
            ``steps``: live steps of the step budget, 0 when it did not run. ``scale_min``, ``scale_max``: of the step
            factors c_k, 1 when it did not run. ``scale_clamped``: share of live steps with c_k at 1/2 or 2.

    Each is an attribute of its own: ``stats.delta_mean``.
    """

    packed: torch.Tensor

    def __getattr__(self, name: str) -> torch.Tensor:
        if name not in STATISTICS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.packed[STATISTICS.index(name)]

    def as_dict(self) -> dict[str, float]:
        """Plain numbers by name, in one transfer from the device."""
        return dict(zip(STATISTICS, self.packed.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class ShapedAdvantages:
    """Result of ``shape_advantages``; tensors are detached and have the leading shape (...) of the input.

    Attributes:
        planes: (4, ...) one beside the other: ``advantages``, ``weights``, ``delta`` and ``step_scale``.
        advantages: (...) shaped advantages Ã.
        weights: (...) clipped weights w in [1 - α, 1 + α]; 1 outside steps.
        delta: (...) log p_T - log p_S; 0 outside steps.
        step_scale: (...) factor c_k that the step budget applied; 1 where it did not.
        student_logprobs, teacher_logprobs: (...) log-probs of the tokens; 0 outside steps, but ready ones as given.
        entropies: (student, teacher), each (...), 0 outside steps; None unless asked for.
        stats: Statistics of Δ, w, the clip and the budget.
    """

    planes: torch.Tensor
    student_logprobs: torch.Tensor
    teacher_logprobs: torch.Tensor
    entropies: tuple[torch.Tensor, torch.Tensor] | None
    stats: ShapingStats

    @property
    def advantages(self) -> torch.Tensor:
        return self.planes[0]

    @property
    def weights(self) -> torch.Tensor:
        return self.planes[1]

    @property
    def delta(self) -> torch.Tensor:
        return self.planes[2]

    @property
    def step_scale(self) -> torch.Tensor:
        return self.planes[3]
