"""fp32 weights beside a half-precision model: the optimiser moves them, the model is their rounding.

A weight of 0.02 in bf16 has neighbours 1e-4 away: a step of 1e-6 would be lost every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Masters:
    """The exact weights of a model whose own are rounded.

    Args:
        parameters: Trained ones of the model; those in fp32 are their own masters.

    Attributes:
        weights: What the optimiser is given, in the order of ``parameters``.

    Example:
        >>> rounded = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        >>> masters = Masters([rounded])
        >>> masters.weights[0].data += 1e-3
        >>> masters.round()
        >>> rounded.item(), round(masters.weights[0].item(), 4)
        (1.0, 1.001)
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.rounded = list(parameters)
        self.weights = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.rounded]
        self._pairs = [(m, p) for m, p in zip(self.weights, self.rounded, strict=True) if m is not p]

    def collect(self) -> None:
        """Add the model's gradients to the masters' in fp32, after every backward."""
        for master, own in self._pairs:
            if own.grad is not None:
                gradient = own.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                own.grad = None

    def forget(self) -> None:
        """Drop gradients that were not collected."""
        for _, own in self._pairs:
            own.grad = None

    @torch.no_grad()
    def round(self) -> None:
        """Give the model the masters' values, after every step."""
        for master, own in self._pairs:
            own.copy_(master)

    def exact(self) -> list[Tensor]:
        """The weights for a checkpoint."""
        return [weight.detach().cpu() for weight in self.weights]

    @torch.no_grad()
    def restore(self, saved: Sequence[Tensor] | None) -> None:
        """Take over ``exact`` weights; without any, those of the model."""
        for at, (master, own) in enumerate(zip(self.weights, self.rounded, strict=True)):
            master.copy_(own if saved is None else saved[at])
        self.round()
