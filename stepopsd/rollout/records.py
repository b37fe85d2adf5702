"""Token-level records: Turn -> Trajectory -> Row -> Batch. Ids are what was sampled, never re-tokenised text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from stepopsd.envs.base import Task

STATUSES = (
    "success", "failure", "step_limit", "context_limit", "time_limit", "env_error", "infra_error", "replay_mismatch",
)  # fmt: skip
#: The environment broke: such episodes say nothing about the policy and leave the loss and the statistics.
UNUSABLE = ("time_limit", "env_error", "infra_error", "replay_mismatch")


@dataclass(slots=True)
class Turn:
    """One model call and what the environment answered.

    Attributes:
        prompt_ids: The whole context of this call.
        response_ids: Sampled ids, including the end-of-turn id when it was sampled.
        logprobs: Log-prob of each response id under the sampling policy at its temperature, same length.
        spans: Span name -> half-open token range in ``response_ids``; a span that does not exist is absent.
            Names: ``action_only`` (the action block with its tags), ``clean_step_no_observation`` (the whole turn),
            ``answer_only`` (the action block where it is an answer).
        observation: Text the model saw before this call.
        response: Decoded response, for people to read.
        action: What was sent to the environment.
        is_valid: The response followed the format.
        info: Facts about the step from the environment (``StepResult.info``); ``left_out`` counts parts of
            observations that the prompt had no room for.
        kept: Ids at the head of the response that were taken over from another episode.
        reward: What the environment paid for the action.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    spans: dict[str, tuple[int, int]]
    observation: str
    response: str
    action: str
    is_valid: bool
    info: dict[str, Any] = field(default_factory=dict)
    kept: int = 0
    reward: float = 0.0


@dataclass(frozen=True, slots=True)
class Prefix:
    """What an episode takes over from another one of the same task and seed.

    Attributes:
        turns: Of the other episode from its first one; all but the last are taken over whole.
        tokens: Response ids to keep of the last one; 0 keeps none, the episode goes on before that turn.

    Raises:
        ValueError: No turns, or ``tokens`` outside [0, length of the last response).
    """

    turns: tuple[Turn, ...]
    tokens: int = 0

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("turns must hold at least one turn, got none")
        most = len(self.turns[-1].response_ids) - 1
        if not 0 <= self.tokens <= most:
            raise ValueError(f"tokens must lie in [0, {most}], got {self.tokens}")

    @staticmethod
    def upto(turns: Sequence[Turn], cut: int) -> Prefix | None:
        """The first ``cut`` response ids of some turns, counted through; None for 0, which keeps nothing.

        Raises:
            ValueError: The cut leaves nothing to sample again, or is negative.
        """
        left = cut
        for index, turn in enumerate(turns):
            if 0 <= left < len(turn.response_ids):
                return Prefix(tuple(turns[: index + 1]), left) if cut else None
            left -= len(turn.response_ids)
        total = sum(len(turn.response_ids) for turn in turns)
        raise ValueError(f"cut must lie in [0, {total}), got {cut}")


@dataclass(slots=True)
class Trajectory:
    """One episode of one group member.

    Attributes:
        group_id: Index of the group in this batch; members of a group share task and seed.
        member: Index inside the group.
        reward: Return of the episode (environment reward summed over steps).
        status: One of ``STATUSES``; ``failure`` when the environment ended the episode without success.
        error: Cause of a status in ``UNUSABLE``.
        kept: Turns that were taken over from another episode; see ``Prefix``.
    """

    task: Task
    goal: str
    group_id: int
    member: int
    seed: int
    context: str
    turns: list[Turn] = field(default_factory=list)
    reward: float = 0.0
    success: bool = False
    status: str = "step_limit"
    error: str = ""
    kept: int = 0

    @property
    def invalid_turns(self) -> int:
        return sum(not turn.is_valid for turn in self.turns)

    @property
    def facts(self) -> dict[str, float]:
        """The newest value of every number in the turns' ``info``."""
        merged = {key: value for turn in self.turns for key, value in turn.info.items()}
        return {k: float(v) for k, v in merged.items() if isinstance(v, (bool, int, float))}


@dataclass(slots=True)
class Row:
    """One training sequence: a single turn (windowed context) or a whole dialogue.

    All lists have the length of ``input_ids``. ``response_mask[t]`` says that token t was sampled by the policy in this
    episode (what was taken over from another one is context); its log-prob is read from the logits at t-1.
    ``step_ids[t]`` is the turn index inside the trajectory for tokens of the chosen span and -1 elsewhere.
    ``turn_starts`` holds, per turn in this row, the position of the turn's first response token and ``turn_ids`` the
    turn's index in the trajectory.
    """

    input_ids: list[int]
    response_mask: list[bool]
    step_ids: list[int]
    old_logprobs: list[float]
    trajectory: int
    turn_ids: list[int]
    turn_starts: list[int]


@dataclass(slots=True)
class Batch:
    """Right-padded tensors of N rows and T positions; see ``Row`` for the meaning of each.

    Attributes:
        input_ids: (N, T) int64, padding id where ``attention_mask`` is 0.
        attention_mask: (N, T) bool.
        response_mask: (N, T) bool.
        step_ids: (N, T) int32, -1 outside spans.
        old_logprobs: (N, T) float32, 0 outside responses.
        trajectory_ids: (N,) int64, index into the trajectory list.
        group_ids: (N,) int64.
        rewards: (N,) float32, return of the row's trajectory minus the row's own penalties.
        success: (N,) bool.
        advantages: (N, T) float32, filled by the credit method; 0 outside responses.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor
    step_ids: torch.Tensor
    old_logprobs: torch.Tensor
    trajectory_ids: torch.Tensor
    group_ids: torch.Tensor
    rewards: torch.Tensor
    success: torch.Tensor
    advantages: torch.Tensor

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def select(self, rows: torch.Tensor | slice) -> Batch:
        """A batch of the chosen rows, in the given order."""
        return Batch(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def trim(self, width: int) -> Batch:
        """The first ``width`` positions of every row."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: t[:, :width] if t.dim() == 2 else t for name, t in parts.items()})

    def to(self, device: torch.device | str) -> Batch:
        """A copy on ``device``."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name).to(device) for f in fields(self)}
        return Batch(**moved)
