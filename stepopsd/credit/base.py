"""What every credit-assignment method receives and returns, and the registry that finds one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CreditInputs:
    """One batch of N rows and T positions, as plain tensors.

    Attributes:
        advantages: (N,) float32, scalar group advantages, see ``grpo.group_normalize``.
        response_mask: (N, T) bool, sampled tokens.
        step_ids: (N, T) int32, step of the trajectory inside the scored span, -1 outside.
        trajectory_ids: (N,) int64.
        old_logprobs: (N, T) float32, log-probs of the policy that is about to be updated.
        teacher_logprobs: (N, T) float32, NaN where the teacher was not asked; None when no teacher was asked at all.
        update: Number of this update, counted from 1.
    """

    advantages: Tensor
    response_mask: Tensor
    step_ids: Tensor
    trajectory_ids: Tensor
    old_logprobs: Tensor
    teacher_logprobs: Tensor | None
    update: int


@dataclass(frozen=True, slots=True)
class CreditResult:
    """Detached per-token advantages and what is worth logging about them.

    Attributes:
        advantages: (N, T) float32, 0 outside responses.
        metrics: Name -> 0-d tensor or number.
        tokens: Name -> (N, T) tensor for transcripts, e.g. ``delta`` and ``weights``.
    """

    advantages: Tensor
    metrics: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)


class CreditMethod(Protocol):
    """A credit-assignment method; stateless, so that a resumed run needs nothing but the update number."""

    def wants_teacher(self, update: int) -> bool:
        """Whether teacher log-probs change, or diagnose, the advantages of this update."""
        ...

    def assign(self, inputs: CreditInputs) -> CreditResult:
        """Scalar advantages and teacher log-probs -> per-token advantages."""
        ...


_REGISTRY: dict[str, Callable[[Mapping[str, Any]], CreditMethod]] = {}


def register(
    name: str,
) -> Callable[[Callable[[Mapping[str, Any]], CreditMethod]], Callable[[Mapping[str, Any]], CreditMethod]]:
    """Register a factory under ``name``; it is called with the options of the ``credit`` section."""

    def add(factory: Callable[[Mapping[str, Any]], CreditMethod]) -> Callable[[Mapping[str, Any]], CreditMethod]:
        _REGISTRY[name] = factory
        return factory

    return add


def create(name: str, options: Mapping[str, Any]) -> CreditMethod:
    """The method called ``name``. Raises ValueError with the known names for an unknown one."""
    if name not in _REGISTRY:
        raise ValueError(f"credit.name must be one of {', '.join(sorted(_REGISTRY))}, got {name!r}")
    return _REGISTRY[name](options)


def broadcast_advantages(advantages: Tensor, response_mask: Tensor) -> Tensor:
    """(N,) scalar advantages -> (N, T), 0 outside responses."""
    return torch.where(response_mask, advantages[:, None].float(), advantages.new_zeros((), dtype=torch.float32))
