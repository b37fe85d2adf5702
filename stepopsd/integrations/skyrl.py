"""SkyRL, experimental: train with ``with_credit(RayPPOTrainer, credit)`` in your own entry point."""

from __future__ import annotations

from typing import Any

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import Relied
from stepopsd.integrations.padded import shape_rows
from stepopsd.integrations.sessions import numbered

TESTED = "git a956457 (2026-08-21), read, not run"
RELIED = (
    Relied("skyrl.train.trainer:RayPPOTrainer.compute_advantages_and_returns", ("self", "data"), called=False),
    Relied(
        "skyrl.backends.skyrl_train.training_batch:TrainingInput",
        members=("response_mask", "loss_mask", "action_log_probs", "base_action_log_probs", "advantages", "rewards"),
    ),
)


def with_credit(trainer: type, credit: HostCredit) -> type:
    """A subclass of ``RayPPOTrainer`` with shaped advantages, for one row per episode (not step-wise trajectories).

    ``teacher_log_probs``, if your generator puts them into the batch, is the teacher's word; else
    ``base_action_log_probs``, the reference model's.
    """

    class CreditTrainer(trainer):
        def compute_advantages_and_returns(self, data: Any) -> Any:
            if self.cfg.generator.step_wise_trajectories:
                raise ValueError("generator.step_wise_trajectories must be false, got true: a row must be an episode")
            data = super().compute_advantages_and_returns(data)
            told = data.get("teacher_log_probs")
            data["advantages"], found = shape_rows(
                credit, data["advantages"], data["loss_mask"], data["action_log_probs"],
                data.get("base_action_log_probs") if told is None else told, update=max(1, self.global_step),
                rewards=data["rewards"].sum(-1), group_ids=numbered(data.metadata["uids"]),
            )  # fmt: skip
            self.all_metrics.update({f"stepopsd/{name}": value for name, value in found.items()})
            return data

    return CreditTrainer
