"""The best teacher there is: the policy's own posterior given success, which the corridor has in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stepopsd.envs.chain import crossing_of, right_door
from stepopsd.rollout.records import Row, Trajectory
from stepopsd.train.policy import Policy
from stepopsd.train.teacher import Teacher, TeacherScores, response_steps

#: Chance that the oracle leaves to the wrong door, so that its log-prob is a number.
SLIP = 0.01


class OracleTeacher(Teacher):
    """Scores sampled tokens by Bayes: p(token | success) = p(token)·Q / V, Q and V the values behind and before it.

    Away from the crossing's door Q = V, and the teacher is the policy. At that door it is 1 - ``SLIP`` or ``SLIP``,
    whatever the policy's chance. It is told nothing and asks no model, so it is an upper bound, no method.

    Args:
        policy: Whose tokenizer the rows were written with.
        like: Teacher that it stands in for.
    """

    def __init__(self, policy: Policy, like: Teacher) -> None:
        self.config, self.temperature, self.max_tokens = like.config, like.temperature, like.max_tokens
        self.is_stale, self.scorer = False, policy

    def score(
        self, rows: Sequence[Row], trajectories: Sequence[Trajectory], wanted: Tensor, width: int, *,
        tokens: Literal["span", "response"] = "span", keep: bool = False,
    ) -> TeacherScores:  # fmt: skip
        if keep:
            raise ValueError("an oracle has log-probs of sampled tokens alone, no states to read")
        out = torch.full((len(rows), width), math.nan)
        for i in wanted.nonzero()[:, 0].tolist():
            row, trajectory = rows[i], trajectories[rows[i].trajectory]
            steps = row.step_ids if tokens == "span" else response_steps(row)
            crossing = crossing_of(trajectory.task)
            door = self._door(row, trajectory, crossing)
            for t, step in enumerate(steps):
                if step >= 0:
                    out[i, t] = row.old_logprobs[t]
            if door is not None and steps[door] >= 0:
                won = trajectory.turns[crossing].action == right_door(trajectory.task, trajectory.seed)
                out[i, door] = math.log(1 - SLIP if won else SLIP)
        return TeacherScores(out, ~out.isnan(), tokens=0, with_peer=0, cut_blocks=0)

    def _door(self, row: Row, trajectory: Trajectory, crossing: int) -> int | None:
        """Position of the token that names the crossing's door, if the row sampled it."""
        names = {f"{crossing + 1}{side}" for side in "ab"}
        for turn, start in zip(row.turn_ids, row.turn_starts, strict=True):
            if turn != crossing:
                continue
            for offset, token in enumerate(trajectory.turns[turn].response_ids):
                if self.scorer.tokenizer.decode([token]).strip() in names:
                    return start + offset if row.response_mask[start + offset] else None
        return None
