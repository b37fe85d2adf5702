"""Other trainers' data classes and signatures as far as our adapters use them, for machines without the trainers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch


@dataclass
class Step:
    """rllm."""

    response_ids: list[int]
    logprobs: list[float]
    id: str = ""
    advantage: Any = None


@dataclass
class Trajectory:
    """rllm."""

    steps: list[Step]
    reward: float | None
    uid: str = "t"


@dataclass
class TrajectoryGroup:
    """rllm."""

    trajectories: list[Trajectory]
    group_id: str = ""


@dataclass
class TensorData:
    """tinker."""

    data: list[float]

    @classmethod
    def from_torch(cls, tensor):
        return cls(tensor.tolist())

    def to_torch(self):
        return torch.tensor(self.data)


@dataclass
class Datum:
    """tinker."""

    loss_fn_inputs: dict[str, Any]
    model_input: Any = None


@dataclass
class MessageNode:
    """verifiers."""

    mask: list[bool]
    logprobs: list[float]
    token_ids: list[int] = field(default_factory=list)
    advantages: list[float] | None = None
    reference_logprobs: list[float] | None = None


@dataclass
class Trace:
    """verifiers."""

    nodes: list[MessageNode]
    reward: float
    has_error: bool = False
    agent: Any = field(default_factory=lambda: SimpleNamespace(trainable=True))


class Algorithm:
    """prime-rl's GRPO: reward minus the mean, on every sampled token."""

    async def score_group(self, episodes):
        traces = [trace for episode in episodes for trace in episode.traces]
        mean = sum(trace.reward for trace in traces) / len(traces)
        for trace in traces:
            for node in trace.nodes:
                node.advantages = [trace.reward - mean] * sum(node.mask)


class Estimator:
    """NeMo-RL's GRPO."""

    def compute_advantage(self, prompt_ids, rewards, mask, **kwargs):
        return (rewards - rewards.mean())[:, None] * mask


class ExperienceMaker:
    """OpenRLHF."""

    def compute_advantages_and_returns(self, experiences):
        for made in experiences:
            made.advantages = (made.rewards - made.rewards.mean())[:, None] * made.action_mask
        return experiences


class SkyTrainer:
    """SkyRL."""

    def __init__(self, step_wise=False):
        self.cfg = SimpleNamespace(generator=SimpleNamespace(step_wise_trajectories=step_wise))
        self.global_step, self.all_metrics = 1, {}

    def compute_advantages_and_returns(self, data):
        rewards = data["rewards"].sum(-1)
        data["advantages"] = data["returns"] = (rewards - rewards.mean())[:, None] * data["response_mask"]
        return data


class SkyBatch(dict):
    """SkyRL's batch."""

    metadata: dict[str, Any]
