"""Fixed panels: the same games, seeds and sampling at every evaluation, one record per episode."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from stepopsd.envs.base import Task
from stepopsd.rollout.records import Trajectory


def panel(tasks: Sequence[Task], games: int) -> list[Task]:
    """``games`` tasks spread evenly over the sorted split, so that every task type is met; 0 takes all."""
    ordered = sorted(tasks, key=lambda task: task.task_id)
    if games <= 0 or games >= len(ordered):
        return ordered
    return [ordered[i * len(ordered) // games] for i in range(games)]


def episode_records(trajectories: Iterable[Trajectory], name: str, update: int) -> list[dict[str, Any]]:
    """One plain object per evaluated episode; ``member`` of a trajectory is its sample number."""
    return [
        {
            "update": update,
            "panel": name,
            "task_id": t.task.task_id,
            "kind": t.task.kind,
            "sample": t.member,
            "seed": t.seed,
            "success": t.success,
            "steps": len(t.turns),
            "invalid_actions": t.invalid_turns,
            "status": t.status,
        }
        for t in trajectories
    ]


def success_by_kind(records: Iterable[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Task type -> (won, played); ``all`` holds the total."""
    won: dict[str, int] = defaultdict(int)
    played: dict[str, int] = defaultdict(int)
    for record in records:
        for key in (record["kind"], "all"):
            won[key] += bool(record["success"])
            played[key] += 1
    return {kind: (won[kind], played[kind]) for kind in sorted(played)}
