"""Readable records of trajectories with every token's advantage, for the report and for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from stepopsd.rollout.records import Batch, Row, Trajectory
from stepopsd.train.policy import Policy


def choose_transcripts(
    trajectories: Sequence[Trajectory], count: int, trained: Collection[int], groups: int = 0
) -> list[int]:
    """Indices worth reading: whole groups, then a failed and a successful member of each mixed group, then any others.

    Args:
        trajectories: Of one update.
        count: How many to choose beside the whole groups; these count, too.
        trained: Only these, which have rows, are chosen.
        groups: How many whole groups, mixed ones first.
    """
    members: dict[int, list[int]] = {}
    for i in sorted(trained):
        members.setdefault(trajectories[i].group_id, []).append(i)
    mixed = {g: own for g, own in sorted(members.items()) if len({trajectories[i].success for i in own}) == 2}
    whole = [i for g in [*mixed, *sorted(members.keys() - mixed.keys())][:groups] for i in members[g]]
    pairs = [next(i for i in own if trajectories[i].success is won) for own in mixed.values() for won in (False, True)]
    order = dict.fromkeys([*whole, *pairs, *sorted(trained)])
    return list(order)[: max(count, len(whole))]


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

    The numbers have seven digits. ``members`` is how many of the group were trained on: a record that has them all
    holds what every other method needs that reads nothing but rewards, log-probs and observations.
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
                "reward": turn.reward,
                "tokens": [policy.tokenizer.decode([i]) for i in turn.response_ids],
                "logprobs": _digits(batch.old_logprobs[r, where]),
                "advantages": _digits(plain[r].expand(count)),
                "shaped": _digits(batch.advantages[r, where]),
                "delta": _digits(tokens["delta"][r, where]) if "delta" in tokens else [0.0] * count,
                "weights": _digits(tokens["weights"][r, where]) if "weights" in tokens else [1.0] * count,
                "in_span": (batch.step_ids[r, where] >= 0).tolist(),
            }
    first = next(r for r, row in enumerate(rows) if row.trajectory == index)
    return {
        "task_id": own.task.task_id,
        "kind": own.task.kind,
        "goal": own.goal,
        "group": own.group_id,
        "member": own.member,
        "members": len({r.trajectory for r in rows if trajectories[r.trajectory].group_id == own.group_id}),
        "asked": "delta" in tokens,
        "context": own.context,
        "reward": own.reward,
        "success": own.success,
        "status": own.status,
        "advantage": float(plain[first]),
        "turns": [turns[k] for k in sorted(turns)],
    }


def _digits(values: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]
