"""Trajectories -> training rows -> padded tensors."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from stepopsd.rollout.records import Batch, Row, Trajectory, Turn


def build_rows(trajectories: Sequence[Trajectory], *, span: str) -> list[Row]:
    """One row per model call (``turn`` context) or per episode (``dialogue``), in trajectory order.

    What an episode took over from another is context in a dialogue's row and has no row of its own.

    Args:
        trajectories: What was played; one without turns gives no row.
        span: Name in ``Turn.spans`` whose tokens get step ids; turns without it keep -1 everywhere.

    Raises:
        ValueError: A dialogue's call does not continue the ids of the call before.
    """
    rows: list[Row] = []
    for index, trajectory in enumerate(trajectories):
        turns = list(enumerate(trajectory.turns))
        if trajectory.context == "dialogue":
            if turns:
                rows.append(_row(index, turns, span, trajectory.kept))
        else:
            rows += [_row(index, [turn], span) for turn in turns[trajectory.kept :]]
    return rows


def _row(trajectory: int, turns: list[tuple[int, Turn]], span: str, kept_turns: int = 0) -> Row:
    row = Row([], [], [], [], trajectory, [], [])
    for turn_id, turn in turns:
        seen = len(row.input_ids)
        if turn.prompt_ids[:seen] != row.input_ids:
            raise ValueError(f"turn {turn_id} of trajectory {trajectory} does not continue the ids of the turn before")
        context = turn.prompt_ids[seen:]
        _extend(row, context, False, [-1] * len(context), [0.0] * len(context))
        row.turn_ids.append(turn_id)
        row.turn_starts.append(len(row.input_ids))
        start, stop = turn.spans.get(span, (0, 0))
        kept = len(turn.response_ids) if turn_id < kept_turns else turn.kept
        _extend(row, turn.response_ids[:kept], False, [-1] * kept, [0.0] * kept)
        steps = [turn_id if start <= t < stop else -1 for t in range(kept, len(turn.response_ids))]
        _extend(row, turn.response_ids[kept:], True, steps, turn.logprobs[kept:])
    return row


def _extend(row: Row, ids: list[int], sampled: bool, steps: list[int], logprobs: list[float]) -> None:
    row.input_ids += ids
    row.response_mask += [sampled] * len(ids)
    row.step_ids += steps
    row.old_logprobs += logprobs


def with_copies(
    rows: Sequence[Row], multiple: int, seed: str, places: tuple[Sequence[int], int] | None = None
) -> list[Row]:
    """The rows and, behind them, copies of randomly chosen ones up to the next multiple; 0 or 1 adds none.

    Copies change group statistics by row and count twice in the loss; steps and trajectories stay what they are.

    Args:
        rows: To copy from.
        multiple: Of the number of all rows.
        seed: Of the choice.
        places: Where these are among how many, for one of several processes; None where these are all.
    """
    own, count = (range(len(rows)), len(rows)) if places is None else places
    missing = -count % multiple if multiple else 0
    row_at = dict(zip(own, rows, strict=True))
    chosen = random.Random(seed).choices(range(count), k=missing)
    return [*rows, *(row_at[place] for place in chosen if place in row_at)]


def empty_batch() -> Batch:
    """A batch of no rows, for a process whose episodes cannot be trained on."""
    ids = torch.zeros((0, 1), dtype=torch.int64)
    flags, numbers = torch.zeros((0, 1), dtype=torch.bool), torch.zeros((0, 1), dtype=torch.float32)
    return Batch(
        input_ids=ids, attention_mask=flags, response_mask=flags, step_ids=ids.int(), old_logprobs=numbers,
        trajectory_ids=ids[:, 0], group_ids=ids[:, 0], rewards=numbers[:, 0], success=flags[:, 0], advantages=numbers,
    )  # fmt: skip


def collate(
    rows: Sequence[Row],
    trajectories: Sequence[Trajectory],
    *,
    pad_id: int,
    reward_scale: float,
    invalid_action_penalty: float,
) -> Batch:
    """Right-padded tensors; advantages are zeros for the credit method to fill.

    Args:
        rows: From ``build_rows`` on the same trajectories; at least one.
        trajectories: What the rows index.
        pad_id: Fills ``input_ids``.
        reward_scale: Factor on the trajectory's return.
        invalid_action_penalty: Subtracted from a row's reward for each invalid turn in it.

    Raises:
        ValueError: ``rows`` is empty.
    """
    if not rows:
        raise ValueError("rows must not be empty: no trajectory has a turn")
    owners = [trajectories[row.trajectory] for row in rows]
    penalties = [
        invalid_action_penalty * sum(not owner.turns[i].is_valid for i in row.turn_ids)
        for row, owner in zip(rows, owners, strict=True)
    ]
    input_ids = _padded([row.input_ids for row in rows], pad_id, torch.int64)  # (N, T)
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    return Batch(
        input_ids=input_ids,
        attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
        response_mask=_padded([row.response_mask for row in rows], False, torch.bool),
        step_ids=_padded([row.step_ids for row in rows], -1, torch.int32),
        old_logprobs=_padded([row.old_logprobs for row in rows], 0.0, torch.float32),
        trajectory_ids=torch.tensor([row.trajectory for row in rows]),
        group_ids=torch.tensor([owner.group_id for owner in owners]),
        rewards=torch.tensor(
            [reward_scale * owner.reward - penalty for owner, penalty in zip(owners, penalties, strict=True)],
            dtype=torch.float32,
        ),
        success=torch.tensor([owner.success for owner in owners]),
        advantages=torch.zeros(input_ids.shape, dtype=torch.float32),
    )


def _padded(lists: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> torch.Tensor:
    """(N, T) with T the longest list."""
    out = torch.full((len(lists), max(map(len, lists))), fill, dtype=dtype)
    for i, values in enumerate(lists):
        out[i, : len(values)] = torch.tensor(values, dtype=dtype)
    return out
