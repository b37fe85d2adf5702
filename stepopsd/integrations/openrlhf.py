"""OpenRLHF, experimental: ``ppo_trainer.RemoteExperienceMaker = with_credit(RemoteExperienceMaker, credit)``."""

from __future__ import annotations

from typing import Any

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import Relied
from stepopsd.integrations.padded import shape_rows

TESTED = "git 3c3be62 (2026-08-13), read, not run"
_MAKER = "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker"
RELIED = (
    Relied(f"{_MAKER}.compute_advantages_and_returns", ("self", "experiences"), called=False),
    Relied(
        "openrlhf.trainer.ppo_utils.experience:Experience",
        members=("advantages", "action_mask", "action_log_probs", "base_action_log_probs", "rewards"),
    ),
    Relied("openrlhf.trainer.ppo_trainer:RemoteExperienceMaker"),
)


def with_credit(maker: type, credit: HostCredit) -> type:
    """A subclass of ``RemoteExperienceMaker`` whose experiences carry shaped advantages.

    ``base_action_log_probs``, the reference model's, are the teacher's word: OpenRLHF has no other.
    """

    class CreditMaker(maker):
        stepopsd_update = 0

        def compute_advantages_and_returns(self, experiences: list[Any]) -> list[Any]:
            self.stepopsd_update += 1
            for made in (found := super().compute_advantages_and_returns(experiences)):
                made.advantages, metrics = shape_rows(
                    credit, made.advantages, made.action_mask, made.action_log_probs, made.base_action_log_probs,
                    update=self.stepopsd_update, rewards=made.rewards,
                )  # fmt: skip
                made.info |= {f"stepopsd/{k}": made.rewards.new_full(made.rewards.shape, v) for k, v in metrics.items()}
            return found

    return CreditMaker
