"""Readable records of trajectories with every token's advantage, for the report and for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from stepopsd.rollout.records import Batch, Row, Trajectory
from stepopsd.train.policy import Policy


def choose_transcripts(trajectories: Sequence[Trajectory], count: int, trained: Collection[int]) -> list[int]:
    """Indices worth reading: a failed and a successful member of each mixed group first, then any others.

    Only trajectories in ``trained``, those that have rows, are chosen.
    """
    chosen: list[int] = []
    for group in sorted({t.group_id for t in trajectories}):
        members = [i for i, t in enumerate(trajectories) if t.group_id == group]
        won = [i for i in members if trajectories[i].success]
        lost = [i for i in members if not trajectories[i].success]
        if won and lost:
            chosen += [lost[0], won[0]]
    chosen += [i for i in range(len(trajectories)) if i not in chosen]
    return [i for i in chosen if i in trained][:count]


def transcript(
    index: int,
    trajectories: Sequence[Trajectory],
    rows: Sequence[Row],
    plain: Tensor,
    batch: Batch,
    tokens: dict[str, Tensor],
    policy: Policy,
) -> dict[str, Any]:
    """One trajectory as plain data; per token the student's log-prob, A, Ã, Δ (teacher = log-prob + Δ) and w.

    Args:
        index: Which trajectory.
        plain: (N,) scalar advantages before shaping.
        batch: The batch with its shaped advantages, rows in the order of ``rows``.
        tokens: (N, T) tensors of the credit method (``delta``, ``weights``); may be empty.
    """
    own = trajectories[index]
    turns: dict[int, dict[str, Any]] = {}
    for r, row in enumerate(rows):
        if row.trajectory != index:
            continue
        for turn_id, start in zip(row.turn_ids, row.turn_starts, strict=True):
            turn = own.turns[turn_id]
            where = slice(start, start + len(turn.response_ids))
            count = len(turn.response_ids)
            turns[turn_id] = {
                "observation": turn.observation,
                "action": turn.action,
                "is_valid": turn.is_valid,
                "tokens": [policy.tokenizer.decode([i]) for i in turn.response_ids],
                "logprobs": batch.old_logprobs[r, where].tolist(),
                "advantages": [float(plain[r])] * count,
                "shaped": batch.advantages[r, where].tolist(),
                "delta": tokens["delta"][r, where].tolist() if "delta" in tokens else [0.0] * count,
                "weights": tokens["weights"][r, where].tolist() if "weights" in tokens else [1.0] * count,
                "in_span": (batch.step_ids[r, where] >= 0).tolist(),
            }
    first = next(r for r, row in enumerate(rows) if row.trajectory == index)
    return {
        "task_id": own.task.task_id,
        "kind": own.task.kind,
        "goal": own.goal,
        "group": own.group_id,
        "member": own.member,
        "reward": own.reward,
        "success": own.success,
        "status": own.status,
        "advantage": float(plain[first]),
        "turns": [turns[k] for k in sorted(turns)],
    }
