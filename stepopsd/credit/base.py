"""What every credit-assignment method receives and returns, how methods compose, and the registry that finds one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stepopsd.credit.plan import Continuation, Plan, plain_plan

#: Extra of methods that make advantages of their own: (N,) rewards of the rows.
REWARDS = "rewards"
#: Extra of a method that branches: (N, K) rewards of the branches of each row's group, NaN where there are fewer.
BRANCH_REWARDS = "branch_rewards"


@dataclass(frozen=True, slots=True)
class CreditInputs:
    """One batch of N rows and T positions, as plain tensors.

    Attributes:
        advantages: (N,) float32, scalar group advantages, see ``grpo.group_normalize``; or (N, T) where a method that
            comes first has already given each token its own.
        response_mask: (N, T) bool, sampled tokens.
        step_ids: (N, T) int32, step of the trajectory inside the scored span, -1 outside.
        trajectory_ids: (N,) int64.
        old_logprobs: (N, T) float32, log-probs of the policy that is about to be updated.
        teacher_logprobs: (N, T) float32, NaN where the teacher was not asked; None when no teacher was asked at all.
        update: Number of this update, counted from 1.
        group_ids: (N,) int64; None where nobody needs them.
        extras: What the method named in ``needs``, by name, first axis N.
        current_logprobs: (N, T) float32, log-probs of the policy as it is now, in the call before an optimiser step;
            None before the first one, where they are the old ones.
    """

    advantages: Tensor
    response_mask: Tensor
    step_ids: Tensor
    trajectory_ids: Tensor
    old_logprobs: Tensor
    teacher_logprobs: Tensor | None
    update: int
    group_ids: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    current_logprobs: Tensor | None = None

    def select(self, rows: Tensor) -> CreditInputs:
        """The same of the chosen rows, in the given order."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {name: value[rows] for name, value in parts.items() if isinstance(value, Tensor)}
        return replace(self, **chosen, extras={name: value[rows] for name, value in self.extras.items()})


@dataclass(frozen=True, slots=True)
class CreditResult:
    """Detached per-token advantages and what is worth logging about them.

    Attributes:
        advantages: (N, T) float32, 0 outside responses.
        metrics: Name -> 0-d tensor or number.
        tokens: Name -> (N, T) tensor for transcripts, e.g. ``delta`` and ``weights``.
        factors: (N, T) float32, what the method multiplied the incoming advantages by; None for one that changes
            nothing, or that makes advantages of its own.
    """

    advantages: Tensor
    metrics: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    factors: Tensor | None = None

    def select(self, rows: Tensor) -> CreditResult:
        """The same of the chosen rows; the metrics stay those of the whole batch."""
        factors = None if self.factors is None else self.factors[rows]
        tokens = {name: value[rows] for name, value in self.tokens.items()}
        return CreditResult(self.advantages[rows], self.metrics, tokens, factors)


@dataclass(frozen=True, slots=True)
class AuxiliaryInputs:
    """M response tokens of one micro-batch that a teacher scored, for a loss term beside the policy loss.

    Attributes:
        hidden: (M, H) student's last hidden states, carrying the gradient; (M, V) logits where ``weight`` is None.
        weight: (V, H) LM head, or None.
        bias: (V,) or None.
        token_ids: (M,) int64.
        logprobs: (M,) float32, detached, under the policy as it is now.
        teacher_logprobs: (M,) float32; NaN for a method that reads the teacher's states instead.
        token_weights: (M,) float32, weights of the tokens in the mini-batch's loss.
        temperature: Of sampling; logits are divided by it.
        teacher_hidden, teacher_weight, teacher_bias: The same of the teacher at the same tokens, constants; None for a
            method that does not read them (``reads_teacher_states``).
    """

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None
    token_ids: Tensor
    logprobs: Tensor
    teacher_logprobs: Tensor
    token_weights: Tensor
    temperature: float
    teacher_hidden: Tensor | None = None
    teacher_weight: Tensor | None = None
    teacher_bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AuxiliaryLoss:
    """A loss term with its gradient, and token means to log (each a plain mean over the M tokens)."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BranchTokens:
    """The sampled tokens of n attempts in W positions, for a method that chooses where to branch.

    Attributes:
        attempts: Names of the n attempts, for ``Continuation.row``.
        mask: (n, W) bool, sampled tokens.
        entropies: (n, W) float32, of the policy as it is now.
        logprobs, reference_logprobs: (n, W) float32, now and before, as ``branching`` says; None for ``rollout``.
        group_ids: (n,) int64.
    """

    attempts: tuple[int, ...]
    mask: Tensor
    entropies: Tensor
    logprobs: Tensor | None
    reference_logprobs: Tensor | None
    group_ids: Tensor


@dataclass(frozen=True, slots=True)
class Branching:
    """Where a method branches, and what is worth logging about it, each a mean over the attempts."""

    continuations: list[Continuation]
    metrics: dict[str, float] = field(default_factory=dict)


class CreditMethod:
    """A credit-assignment method; stateless, so that a resumed run needs nothing but the update number.

    Attributes:
        role: ``base`` makes advantages out of rewards, ``factor`` multiplies those of the base by (N, T) factors,
            ``auxiliary`` leaves them alone and adds a loss term.
        rewarded: Whether the method is about rewards at all; where no method is, the policy loss is left out.
        teacher_tokens: What its teacher scores: the run's ``span`` of each turn, or the whole ``response``.
        reads_teacher_states: ``auxiliary`` reads the teacher's hidden states instead of log-probs of sampled tokens.
        per_minibatch: ``assign`` is called again before every optimiser step, with ``current_logprobs``.
    """

    role: ClassVar[Literal["base", "factor", "auxiliary"]] = "factor"
    rewarded: ClassVar[bool] = True
    teacher_tokens: ClassVar[Literal["span", "response"]] = "span"
    reads_teacher_states: ClassVar[bool] = False
    per_minibatch: ClassVar[bool] = False

    @property
    def step_delimiter(self) -> str:
        """Text that ends a step inside a turn of the attempts that ``plan`` sees; empty: a step is a turn."""
        return ""

    def plan(self, prompts: int, group_size: int, rng: random.Random) -> Plan:
        """What an update's rollouts are; see ``credit/plan.py``. Only the plan of a ``base`` method is asked for.

        Args:
            prompts: Number of prompts.
            group_size: The run's attempts per prompt.
            rng: Of this update; every draw of the plan's own comes from it.
        """
        return plain_plan(prompts, group_size)

    @property
    def branching(self) -> str:
        """When a ``base`` method's ``branch`` is asked.

        ``minibatch``: before every optimiser step, with the log-probs of now and of the sampling policy. ``lagged``:
        once per update, with those of now and of the policy before the last update. ``rollout``: once per update,
        without log-probs. Empty: never.
        """
        return ""

    def branch(self, tokens: BranchTokens) -> Branching:
        """Continuations whose rewards ``assign`` reads as an extra; they are not trained on."""
        raise NotImplementedError

    def needs(self, update: int) -> frozenset[str]:
        """Names of ``extras`` that this update's ``assign`` reads."""
        return frozenset()

    def wants_teacher(self, update: int) -> bool:
        """Whether teacher log-probs change, or diagnose, this update."""
        return False

    def assign(self, inputs: CreditInputs) -> CreditResult:
        """Advantages so far and teacher log-probs -> per-token advantages."""
        raise NotImplementedError

    def auxiliary(self, inputs: AuxiliaryInputs) -> AuxiliaryLoss:
        """The loss term of an ``auxiliary`` method on one micro-batch."""
        raise NotImplementedError


_REGISTRY: dict[str, Callable[[Mapping[str, Any]], CreditMethod]] = {}


def register(
    name: str,
) -> Callable[[Callable[[Mapping[str, Any]], CreditMethod]], Callable[[Mapping[str, Any]], CreditMethod]]:
    """Register a factory under ``name``; it is called with the options of the ``credit`` section."""

    def add(factory: Callable[[Mapping[str, Any]], CreditMethod]) -> Callable[[Mapping[str, Any]], CreditMethod]:
        _REGISTRY[name] = factory
        return factory

    return add


def registered() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(_REGISTRY)


def create(name: str, options: Mapping[str, Any]) -> CreditMethod:
    """The method called ``name``. Raises ValueError with the known names for an unknown one."""
    if name not in _REGISTRY:
        raise ValueError(f"credit.name must be one of {', '.join(registered())}, got {name!r}")
    return _REGISTRY[name](options)


def compose(base: Tensor, results: Sequence[CreditResult]) -> Tensor:
    """Advantages of several methods together: those of the base times everybody's factors.

    Args:
        base: (N, T) float32 advantages that every method was given.
        results: What they made of them, in any order.

    Returns:
        (N, T) float32. A single result's own advantages, bit for bit.

    Example:
        >>> base, twice = torch.ones(1, 2), torch.tensor([[1.0, 2.0]])
        >>> compose(base, [CreditResult(base * twice, factors=twice)] * 2)
        tensor([[1., 4.]])
    """
    if len(results) == 1:
        return results[0].advantages
    for result in results:
        if result.factors is not None:
            base = base * result.factors
    return base


def broadcast_advantages(advantages: Tensor, response_mask: Tensor) -> Tensor:
    """(N,) scalar or (N, T) token advantages -> (N, T), 0 outside responses."""
    per_token = advantages if advantages.ndim == 2 else advantages[:, None]
    return torch.where(response_mask, per_token.float(), per_token.new_zeros((), dtype=torch.float32))
