"""NeMo-RL, experimental: ``adv_estimator = CreditEstimator(_create_advantage_estimator(master_config), credit)``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import Relied
from stepopsd.integrations.padded import shape_rows

TESTED = "git 7ea279a (2026-08-22), read, not run"
_ESTIMATORS = "nemo_rl.algorithms.advantage_estimator"
RELIED = (
    Relied(f"{_ESTIMATORS}:GRPOAdvantageEstimator.compute_advantage", ("self", "prompt_ids", "rewards", "mask")),
    Relied("nemo_rl.algorithms.grpo:_create_advantage_estimator", ("master_config",)),
)


class CreditEstimator:
    """An advantage estimator of NeMo-RL with a credit method behind it.

    Args:
        inner: NeMo-RL's own, e.g. its GRPO estimator.
        credit: The method. Its teacher's word is ``teacher_logprobs``, or else ``logprobs_reference``.

    Attributes:
        metrics: Of the latest call.
    """

    def __init__(self, inner: Any, credit: HostCredit) -> None:
        self.inner, self.credit, self.update = inner, credit, 0
        self.metrics: dict[str, float] = {}

    def compute_advantage(self, prompt_ids: Tensor, rewards: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
        """(B, S) shaped advantages; see the inner estimator for the arguments."""
        self.update += 1
        plain = self.inner.compute_advantage(prompt_ids=prompt_ids, rewards=rewards, mask=mask, **kwargs)
        student, told = kwargs.get("logprobs_policy"), kwargs.get("teacher_logprobs")
        if student is None:
            raise ValueError("logprobs_policy must be given: the teacher's log-probs are compared with it, got None")
        told = kwargs.get("logprobs_reference") if told is None else told
        groups = prompt_ids.unique(dim=0, return_inverse=True)[1]
        shaped, self.metrics = shape_rows(
            self.credit, plain, mask, student, told, update=self.update, rewards=rewards, group_ids=groups
        )
        return shaped
