"""Fixed panels: the same games, seeds and sampling at every evaluation, one record per episode."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from stepopsd.envs.base import Task
from stepopsd.rollout.records import Trajectory
from stepopsd.train.config import EvalConfig


class Player(Protocol):
    """Plays episodes; see ``train.episodes.Episodes``."""

    def play(
        self,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        members: int,
        *,
        temperature: float,
        progress: Callable[[int, int], None] | None = None,
        groups: Sequence[int] | None = None,
    ) -> list[Trajectory]: ...


def panel(tasks: Sequence[Task], games: int) -> list[Task]:
    """``games`` tasks spread evenly over the sorted split, so that every task type is met; 0 takes all."""
    ordered = sorted(tasks, key=lambda task: task.task_id)
    if games <= 0 or games >= len(ordered):
        return ordered
    return [ordered[i * len(ordered) // games] for i in range(games)]


def panel_of_update(tasks: Sequence[Task], options: EvalConfig, update: int) -> list[Task]:
    """The games of one evaluation: the fixed panel, or with ``eval.panel: draw`` a fresh draw for every update."""
    if options.panel == "fixed":
        return panel(tasks, options.games)
    ordered = panel(tasks, 0)
    drawn = random.Random(f"panel/{options.seed}/{update}").sample(ordered, min(options.games, len(ordered)))
    return sorted(drawn, key=lambda task: task.task_id)


def episodes_of_panel(tasks: Sequence[Task], options: EvalConfig) -> int:
    """How many episodes one evaluation of ``tasks`` plays."""
    return len(tasks) * (options.samples + options.greedy)


def play_panel(
    player: Player,
    tasks: Sequence[Task],
    options: EvalConfig,
    name: str,
    update: int,
    *,
    progress: Callable[[int, int], None] | None = None,
    share: slice = slice(None),
) -> tuple[list[dict[str, Any]], list[Trajectory]]:
    """Play every task ``eval.samples`` times at ``eval.temperature``, and once greedily with ``eval.greedy``.

    Args:
        player: Plays with the policy as it is now.
        tasks: The panel; its order and ``eval.seed`` fix every sampling seed.
        options: The ``eval`` section.
        name: Panel name for the records.
        update: Update that the policy is of.
        progress: Called with (finished, all) episodes of the samples, then of the greedy ones.
        share: Play only these of the tasks; what is sampled in them does not depend on it.

    Returns:
        One record per episode (see ``episode_records``) and the trajectories, in one order: samples, then greedy.
    """
    groups = range(len(tasks))[share]
    tasks, seeds = tasks[share], [options.seed + i for i in groups]
    played = player.play(
        tasks, seeds, options.samples, temperature=options.temperature, progress=progress, groups=groups
    )
    records = episode_records(played, name, update, temperature=options.temperature)
    if options.greedy:
        greedy = player.play(tasks, seeds, 1, temperature=0.0, progress=progress, groups=groups)
        records += episode_records(greedy, name, update, decoding="greedy", temperature=0.0)
        played = played + greedy
    return records, played


def episode_records(
    trajectories: Iterable[Trajectory],
    name: str,
    update: int,
    *,
    decoding: str = "sample",
    temperature: float | None = None,
) -> list[dict[str, Any]]:
    """One plain object per evaluated episode; ``member`` of a trajectory is its sample number.

    Args:
        trajectories: What was played, of any environment.
        name: Panel.
        update: Update that the policy is of.
        decoding: ``sample`` or ``greedy``.
        temperature: What it was sampled at.
    """
    return [
        {
            "update": update,
            "panel": name,
            "task_id": t.task.task_id,
            "kind": t.task.kind,
            "decoding": decoding,
            "temperature": temperature,
            "sample": t.member,
            "seed": t.seed,
            "success": t.success,
            "reward": t.reward,
            "steps": len(t.turns),
            "invalid_actions": t.invalid_turns,
            "response_tokens": sum(len(turn.response_ids) for turn in t.turns),
            "status": t.status,
            **({"scores": t.facts} if t.facts else {}),
        }
        for t in trajectories
    ]


def in_panel_order(parts: Iterable[Sequence[dict[str, Any]]], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The records of a panel that was played in shares, as one process would have written them."""
    place = {task.task_id: i for i, task in enumerate(tasks)}
    records = [record for part in parts for record in part]
    return sorted(records, key=lambda r: (r["decoding"] != "sample", place[r["task_id"]], r["sample"]))


def success_by_kind(records: Iterable[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Task type -> (won, played) of the sampled episodes; ``all`` holds the total.

    Episodes that lost their infrastructure (``infra_error``) were not played.
    """
    won: dict[str, int] = defaultdict(int)
    played: dict[str, int] = defaultdict(int)
    for record in records:
        if record.get("decoding", "sample") != "sample" or record.get("status") == "infra_error":
            continue
        for key in (record["kind"], "all"):
            won[key] += bool(record["success"])
            played[key] += 1
    return {kind: (won[kind], played[kind]) for kind in sorted(played)}
