"""rllm: per-token advantages on the steps of a trajectory group, for ``use_precomputed_advantage=True``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import Relied

TESTED = "git 9beb6e0 (2026-08-15)"
RELIED = (
    Relied("rllm.types:Step", members=("response_ids", "logprobs", "advantage")),
    Relied("rllm.types:Trajectory", members=("steps", "reward", "uid")),
    Relied("rllm.types:TrajectoryGroup", members=("trajectories", "group_id")),
    Relied("rllm.trainer.algorithms.config:AlgorithmConfig", members=("use_precomputed_advantage",)),
)


def assign(
    groups: Sequence[Any], credit: HostCredit, *, update: int,
    teacher_logprobs: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Write ``step.advantage``, one float per response token, on every step of the groups.

    Args:
        groups: rllm's ``TrajectoryGroup`` objects, or anything with ``trajectories`` of ``steps`` (``id``,
            ``response_ids``, ``logprobs``) and a ``reward``. A step of ours is one of rllm's.
        credit: The method.
        update: Counted from 1.
        teacher_logprobs: Step id -> log-probs of its response; steps that are left out are not scored.

    Returns:
        Metrics.

    Raises:
        ValueError: A trajectory without a reward, or a step whose log-probs are not as long as its response.
    """
    rows, rewards, owners, prompts, places = [], [], [], [], []
    trajectory = 0
    for number, group in enumerate(groups):
        for attempt in group.trajectories:
            if attempt.reward is None:
                raise ValueError(f"trajectory {getattr(attempt, 'uid', trajectory)!r} must have a reward, got None")
            for place, step in enumerate(step for step in attempt.steps if len(step.response_ids)):
                rows.append(step)
                rewards.append(float(attempt.reward))
                owners.append(trajectory)
                prompts.append(number)
                places.append(place)
            trajectory += 1
    if not rows:
        return {}
    told = None
    if teacher_logprobs is not None:
        told = [list(teacher_logprobs.get(step.id, ())) or [float("nan")] * len(step.response_ids) for step in rows]
    shaped = credit.advantages(
        response_mask=[[True] * len(step.response_ids) for step in rows],
        rewards=rewards,
        group_ids=prompts,
        trajectory_ids=owners,
        step_ids=[[place] * len(step.response_ids) for step, place in zip(rows, places, strict=True)],
        student_logprobs=None if told is None and not _logprobs(rows) else [list(step.logprobs) for step in rows],
        teacher_logprobs=told,
        update=update,
    )
    for step, values in zip(rows, shaped.advantages, strict=True):
        step.advantage = torch.as_tensor(values).tolist()
    return shaped.metrics


def _logprobs(rows: Sequence[Any]) -> bool:
    return all(len(step.logprobs) for step in rows)
