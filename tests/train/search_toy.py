"""A tiny untrained model and runs of seconds on the bundled world."""

from __future__ import annotations

from pathlib import Path

from stepopsd.envs.searchqa import SearchPrompting
from stepopsd.envs.searchqa.env import LAST_TURN, NO_ACTION, NO_RESULT
from stepopsd.experiments.tiny_model import TinyModelConfig, build_model, build_tokenizer, save, vocabulary
from stepopsd.retrieval import Passage
from stepopsd.text.hindsight import render_hindsight
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree


def save_model(folder: Path, passages: list[Passage], extra: str = "") -> Path:
    """A model whose vocabulary is small, so that an untrained one closes a tag now and then."""
    texts = [f"[1] {p.title} : {p.text}" for p in passages] + [SearchPrompting().opening("x"), extra]
    texts += ["<think> </think> <search> </search> <answer> </answer> <information> </information> question : ?"]
    texts += ["look go"]
    texts += [LAST_TURN, NO_ACTION, NO_RESULT, render_hindsight(True, "1."), render_hindsight(False, None)]
    tokenizer = build_tokenizer(vocabulary(texts))
    save(build_model(tokenizer, TinyModelConfig(width=32, layers=2, heads=2, mlp=64)), tokenizer, folder)
    return folder


def config(run_dir: Path, model: Path, **sections: dict) -> RunConfig:
    tree: dict = {
        "run_dir": str(run_dir), "device": "cpu", "model": {"path": str(model)},
        "env": {"name": "searchqa", "history": 4, "prompt_style": "compact", "eval_splits": ["world_nq"],
                "search": {"max_searches": 2, "observation_tokens": 120, "metric": "f1"}},
        "rollout": {"context": "dialogue", "groups": 2, "group_size": 4, "max_prompt_tokens": 600,
                    "max_response_tokens": 12},
        "credit": {"name": "stepopsd", "span": "clean_step_no_observation", "hindsight": {"render": "full"}},
        "loss": {"kl_coef": 0.0, "invalid_action_penalty": 0.01, "reward_scale": 1.0},
        "optim": {"lr": 1e-3, "updates": 2},
        "eval": {"every": 0, "games": 4, "temperature": 0.0},
        "transcripts_every": 1,
    }  # fmt: skip
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return from_tree(RunConfig, tree)
