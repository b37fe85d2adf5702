"""The ``loss`` section: what is minimised per token; no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from stepopsd.options.checks import NonNegativeFloat, PositiveFloat, Share, check_fields, within


@dataclass(frozen=True, slots=True)
class LossConfig:
    """The policy-gradient loss; docs/losses.md has the equations.

    Attributes:
        name: What is minimised per token.
        clip_low, clip_high: Ratio range [1 - clip_low, 1 + clip_high]; null takes the loss's own: 0.2, 0.2; ``dapo``
            0.2, 0.28; ``gspo`` 3e-4, 4e-4; ``cispo`` 1, 4; ``reinforce`` has none.
        dual_clip: Lower bound factor for negative advantages; 0 turns it off, null takes 3 where a token's ratio is
            clipped in a surrogate (``grpo``, ``dr_grpo``, ``dapo``) and 0 elsewhere.
        aggregation: ``token_mean`` over the mini-batch, ``sequence_mean`` (mean of row means),
            ``sequence_sum`` (row sums over the row count), ``dr_grpo`` (row sums over rows times the response budget);
            null takes ``sequence_mean`` for ``gspo``, ``dr_grpo`` for ``dr_grpo`` and ``token_mean`` for the others.
        kl_coef: Weight of the k3 KL term to the reference; 0 keeps no reference.
        kl_reference: ``start``, the starting policy for good, or ``teacher``, the stale teacher's snapshot, so that the
            anchor moves at every refresh (as where one worker serves both).
        entropy_coef: Weight of the entropy bonus.
        invalid_action_penalty: Subtracted from the reward of a row per invalid turn in it.
        reward_scale: Factor on the environment's 0/1 success (10 in verl-agent).
    """

    name: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce"] = "grpo"
    clip_low: Share | None = None
    clip_high: Annotated[float, within(0.0, 100.0)] | None = None
    dual_clip: float | None = None
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum", "dr_grpo"] | None = None
    kl_coef: NonNegativeFloat = 0.01
    kl_reference: Literal["start", "teacher"] = "start"
    entropy_coef: float = 0.0
    invalid_action_penalty: NonNegativeFloat = 0.1
    reward_scale: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        check_fields("loss", self)
        for key, value in (("clip_low", self.clip_low), ("clip_high", self.clip_high)):
            if value is not None and self.name == "reinforce":
                raise ValueError(f"loss.{key} must be null with loss.name reinforce (it has no ratio), got {value}")
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(f"loss.dual_clip must be 0 (off) or greater than 1, got {self.dual_clip}")
        if self.dual_clip and self.name in ("cispo", "reinforce"):
            raise ValueError(
                f"loss.dual_clip must be 0 or null with loss.name {self.name} (it clips no surrogate), "
                f"got {self.dual_clip}"
            )

    @property
    def bound(self) -> float:
        """``dual_clip`` with null filled in."""
        if self.dual_clip is not None:
            return self.dual_clip
        return 3.0 if self.name in ("grpo", "dr_grpo", "dapo") else 0.0

    @property
    def reduction(self) -> str:
        """``aggregation`` with null filled in."""
        return self.aggregation or {"gspo": "sequence_mean", "dr_grpo": "dr_grpo"}.get(self.name, "token_mean")
