"""One update's batch before the optimiser's step, and what its rollouts say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepopsd.rollout.records import UNUSABLE, Batch, Row, Trajectory
from stepopsd.train.assigned import Assigned
from stepopsd.train.branches import Branches
from stepopsd.train.plan import Conductor


@dataclass(frozen=True, slots=True)
class Prepared:
    """Played, scored and with credit assigned.

    Attributes:
        trajectories: What ``Row.trajectory`` indexes.
        rows: N rows in the order of the batch.
        plain: (N,) scalar advantages.
        batch: With the method's advantages.
        result: Where these came from.
        conductor: Played it, and counts what is sampled.
        branches: Of methods that branch, also in the middle of the step.
        metrics: Of rollout and credit.
        importance: (N, T) weights against a sampler of other numerics, None for 1; see ``mismatch``.
    """

    trajectories: list[Trajectory]
    rows: list[Row]
    plain: Tensor
    batch: Batch
    result: Assigned
    conductor: Conductor
    branches: Branches | None
    metrics: dict[str, Any]
    importance: Tensor | None = None

    def spent(self) -> dict[str, Any]:
        """Everything that was sampled so far, branches and replies included, and continuations that were given up."""
        generated, trained = self.conductor.generated, int(self.batch.response_mask.sum())
        return {
            **(self.branches.metrics() if self.branches else {}),
            "tokens/generated": generated,
            "tokens/generated_per_trained": generated / max(1, trained),
            **{f"dropped/{reason}": count for reason, count in sorted(self.conductor.dropped.items())},
        }

    def sizes(self) -> dict[str, float]:
        """What the means of ``metrics`` are over, to merge those of several ranks."""
        first = _usable(self.conductor)
        return {
            "episodes": len(first),
            "turns": sum(len(t.turns) for t in first),
            "groups": len({t.group_id for t in self.trajectories}),
            "rows": len(self.rows),
            "failed": sum(not self.trajectories[row.trajectory].success for row in self.rows),
            "tokens": int(self.batch.response_mask.sum()),
        }


def rollout_metrics(conductor: Conductor, batch: Batch, plain: Tensor) -> dict[str, Any]:
    """About the first round's usable attempts, a fair sample of the policy."""
    trajectories = _usable(conductor)
    turns = sum(len(t.turns) for t in trajectories)
    groups = torch.unique(batch.group_ids)
    mixed = [g for g in groups if batch.success[batch.group_ids == g].float().std(unbiased=False) > 0]
    count = max(1, len(trajectories))
    return {
        "success": sum(t.success for t in trajectories) / count,
        "reward_mean": sum(t.reward for t in trajectories) / count,
        "turns_mean": turns / count,
        "invalid_share": sum(t.invalid_turns for t in trajectories) / max(1, turns),
        "context_limit_share": sum(t.status == "context_limit" for t in trajectories) / count,
        "mixed_groups": len(mixed) / max(1, groups.numel()),
        "advantage/std": plain.std(unbiased=False) if plain.numel() else 0.0,
        **_means(trajectories),
    }


def _usable(conductor: Conductor) -> list[Trajectory]:
    first = [conductor.trajectories[i] for i in conductor.first]
    return [t for t in first if t.turns and t.status not in UNUSABLE]


def _means(trajectories: list[Trajectory]) -> dict[str, float]:
    """``env/<name>`` -> mean of a fact of the environment over the trajectories that have it."""
    facts = [t.facts for t in trajectories]
    names = sorted({name for own in facts for name in own})
    return {f"env/{n}": sum(own.get(n, 0.0) for own in facts) / sum(n in own for own in facts) for n in names}
