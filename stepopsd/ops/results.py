"""What shape_advantages returns: shaped advantages, the quantities they came from, and statistics."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True, slots=True)
class ShapingStats:
    """Statistics of one call, each a 0-d tensor on the input's device; nothing here waits for the device.

    Moments cover active tokens whose Δ and w are finite; they are 0 where there is none, so read ``count`` first.

    Attributes:
        count: int64, active tokens with finite Δ and w.
        nonfinite: int64, active tokens left out because Δ or w is NaN or infinite.
        delta_mean, delta_std, delta_min, delta_max, delta_abs_mean: Of Δ; std is the population's.
        weight_mean, weight_std, weight_min, weight_max: Of the clipped weight w.
        at_low, at_high: Share of counted tokens with w at 1 - α and at 1 + α (to 1e-6).
        steps: int64, live steps of the step budget; 0 when the budget did not run.
        scale_min, scale_max: Of the step factors c_k; 1 when the budget did not run.
        scale_clamped: Share of live steps with c_k at 1/2 or 2.
    """

    count: torch.Tensor
    nonfinite: torch.Tensor
    delta_mean: torch.Tensor
    delta_std: torch.Tensor
    delta_min: torch.Tensor
    delta_max: torch.Tensor
    delta_abs_mean: torch.Tensor
    weight_mean: torch.Tensor
    weight_std: torch.Tensor
    weight_min: torch.Tensor
    weight_max: torch.Tensor
    at_low: torch.Tensor
    at_high: torch.Tensor
    steps: torch.Tensor
    scale_min: torch.Tensor
    scale_max: torch.Tensor
    scale_clamped: torch.Tensor

    def as_dict(self) -> dict[str, float]:
        """Plain numbers by name, in one transfer from the device."""
        names = [f.name for f in fields(self)]
        values = torch.stack([getattr(self, name).double() for name in names]).tolist()
        return dict(zip(names, values, strict=True))


@dataclass(frozen=True, slots=True)
class ShapedAdvantages:
    """Result of ``shape_advantages``; tensors are detached and have the leading shape (...) of the input.

    Attributes:
        advantages: (...) shaped advantages Ã.
        weights: (...) clipped weights w in [1 - α, 1 + α]; 1 outside steps.
        delta: (...) log p_T - log p_S; 0 outside steps.
        student_logprobs, teacher_logprobs: (...) log-probs of the tokens; 0 outside steps.
        entropies: (student, teacher), each (...), 0 outside steps; None unless asked for.
        step_scale: (...) factor c_k that the step budget applied; 1 where it did not.
        stats: Statistics of Δ, w, the clip and the budget.
    """

    advantages: torch.Tensor
    weights: torch.Tensor
    delta: torch.Tensor
    student_logprobs: torch.Tensor
    teacher_logprobs: torch.Tensor
    entropies: tuple[torch.Tensor, torch.Tensor] | None
    step_scale: torch.Tensor
    stats: ShapingStats
