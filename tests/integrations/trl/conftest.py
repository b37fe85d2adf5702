"""A tiny random Qwen3 in the real TRL, on the bundled games and on one-turn prompts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stepopsd.experiments.tiny_model import TinyModelConfig, build_model
from stepopsd.experiments.warmstart import BUNDLED_MODEL
from tests.extras import missing

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl", reason=missing("trl"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.trl)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BUNDLED_MODEL)


@pytest.fixture
def model(tokenizer) -> Any:
    torch.set_num_threads(1)
    size = TinyModelConfig(width=32, layers=2, heads=2, mlp=64, positions=512)
    return build_model(tokenizer, size, seed=0)


def luck(completion_ids, **kwargs):
    """In [0, 1) and different for different rows: a random model wins nothing, and must be paid for something."""
    return [sum((k + 1) * i for k, i in enumerate(ids)) % 97 / 97 for ids in completion_ids]


@pytest.fixture
def make(tokenizer, model, tmp_path) -> Callable[..., Any]:
    """A trainer of the given class on one-turn prompts; ``config`` overrides keys of its ``GRPOConfig``."""
    from datasets import Dataset

    def build(cls, *, config=None, prompts=("look", "go to shelf 1"), rewards=(luck,), model=model, **kwargs):
        torch.manual_seed(0)
        settings = {
            "output_dir": str(tmp_path / cls.__name__), "per_device_train_batch_size": 4, "num_generations": 4,
            "max_steps": 3, "max_completion_length": 12, "learning_rate": 1e-2, "logging_steps": 1, "report_to": "none",
            "save_strategy": "no", "bf16": False, "use_cpu": True, "seed": 0, "disable_tqdm": True,
            "gradient_checkpointing": False, "weight_decay": 0.0, **(config or {}),
        }  # fmt: skip
        return cls(
            model, reward_funcs=list(rewards), args=trl.GRPOConfig(**settings), processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": list(prompts) * 8}), **kwargs,
        )  # fmt: skip

    return build
