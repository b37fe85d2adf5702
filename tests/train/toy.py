"""A word game behind the environment protocol: two answers with a winning word, within three."""

from __future__ import annotations

from pathlib import Path

from stepopsd.envs.base import Observation, StepResult, Task
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree

TASKS = [Task(f"game-{i}", "toy", f"kind-{i % 2}", "train", "") for i in range(8)]


class WordGame:
    """Wins once two answers held ``cup`` or ``shelf``; an untrained model does so in about one episode of six."""

    goal = "take cup"

    def reset(self, task: Task, seed: int) -> Observation:
        self.said = 0
        return Observation("look shelf 1")

    def step(self, action: str) -> StepResult:
        self.said += "cup" in action or "shelf" in action
        won = self.said == 2
        return StepResult(Observation("go to shelf 2"), float(won), won, won)

    def close(self) -> None:
        pass


def config(run_dir: Path, model: Path, **sections) -> RunConfig:
    """A run of seconds; ``sections`` overrides keys of a section, e.g. ``optim={"updates": 2}``."""
    tree = {
        "run_dir": str(run_dir),
        "device": "cpu",
        "model": {"path": str(model)},
        "env": {"workers": 0, "max_steps": 3, "think": False, "prompt_style": "compact", "eval_splits": ["seen"]},
        "rollout": {"context": "dialogue", "groups": 4, "group_size": 4, "max_prompt_tokens": 100,
                    "max_response_tokens": 4},
        "credit": {"span": "clean_step_no_observation"},  # answers carry no action tags
        "loss": {"kl_coef": 0.0, "invalid_action_penalty": 0.0, "reward_scale": 1.0},
        "optim": {"lr": 1e-2, "updates": 3},
        "eval": {"every": 0, "games": 2, "temperature": 1.0},
    }  # fmt: skip
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return from_tree(RunConfig, tree)
