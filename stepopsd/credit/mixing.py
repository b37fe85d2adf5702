"""λ_t: how much of a teacher's weights enters the advantages; it falls to 0 as the policy learns."""

from __future__ import annotations

from dataclasses import dataclass

from stepopsd.credit.base import CreditMethod


@dataclass(frozen=True)
class MixingMethod(CreditMethod):
    """A ``factor`` method whose weights w enter as 1 + λ_t·(w - 1), with λ_t = λ0·max(0, 1 - t/T) and t from 1.

    Attributes:
        lambda_mix: λ0.
        lambda_decay_updates: T; 0 keeps λ0.
        diagnose_every: Ask the teacher every so many updates although λ_t = 0; 0 never.
    """

    lambda_mix: float
    lambda_decay_updates: int
    diagnose_every: int = 0

    def mixing(self, update: int) -> float:
        """λ_t for update t, counted from 1."""
        if self.lambda_decay_updates <= 0:
            return self.lambda_mix
        return self.lambda_mix * max(0.0, 1.0 - update / self.lambda_decay_updates)

    def wants_teacher(self, update: int) -> bool:
        diagnose = self.diagnose_every > 0 and update % self.diagnose_every == 0
        return self.mixing(update) > 0.0 or diagnose
