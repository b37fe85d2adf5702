"""What a model's forward pass leaves of chosen positions: enough to score tokens, without the batch's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stepopsd.ops.linear import linear_token_logprobs
from stepopsd.ops.linear_loss import linear_grpo_loss
from stepopsd.ops.logprobs import TokenLogprobs, token_logprobs
from stepopsd.ops.policy_loss import PolicyLoss, grpo_loss


@dataclass(frozen=True, slots=True)
class Readout:
    """What predicts M tokens: hidden states with the LM head, or logits where the head is more than a product.

    Attributes:
        states: (M, H) hidden states, or (M, V) logits without a head.
        head: The output embedding, with ``weight`` (V, H) and perhaps ``bias``.
    """

    states: Tensor
    head: Any = None

    def measured(self, ids: Tensor, temperature: float) -> list[Tensor]:
        """(M,) float32 log-probs of (M,) ids, and (M,) entropies in nats."""
        scored = self._scored(ids, temperature, entropy=True)
        assert scored.entropy is not None
        return [scored.logprobs, scored.entropy]

    def logprobs(self, ids: Tensor, temperature: float) -> Tensor:
        """(M,) float32 log-probs of (M,) ids, differentiable."""
        return self._scored(ids, temperature, entropy=False).logprobs

    def _scored(self, ids: Tensor, temperature: float, *, entropy: bool) -> TokenLogprobs:
        weight, bias = self.parameters
        if weight is None:
            return token_logprobs(self.states, ids, temperature=temperature, entropy=entropy)
        return linear_token_logprobs(self.states, weight, ids, bias=bias, temperature=temperature, entropy=entropy)

    def spread(self, mask: Tensor) -> Readout:
        """States (B, T, ...) of the M tokens in ``mask`` (B, T), 0 elsewhere."""
        states = self.states.new_zeros((*mask.shape, self.states.shape[-1]))
        return Readout(states.index_put((mask,), self.states), self.head)

    @property
    def parameters(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias of the head; None, None where the states are logits."""
        return (None, None) if self.head is None else (self.head.weight, getattr(self.head, "bias", None))

    def loss(
        self, ids: Tensor, advantages: Tensor, old_logprobs: Tensor, *, keep: bool = False, **options: Any
    ) -> PolicyLoss:
        """Policy loss of the tokens; options are those that ``grpo_loss`` and ``linear_grpo_loss`` share.

        With ``keep`` the states stay readable for another loss on the same tokens.
        """
        weight, bias = self.parameters
        if weight is None:
            return grpo_loss(self.states, ids, advantages, old_logprobs, inplace=not keep, **options)
        return linear_grpo_loss(self.states, weight, ids, advantages, old_logprobs, bias=bias, **options)
