"""Checkpoints: complete or absent. Written beside, then renamed; the newest one continues the run bit for bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model

from stepopsd.train.policy import Policy

_NAME = "update-{:06d}"


@dataclass(frozen=True, slots=True)
class TrainState:
    """What a run needs beside its configuration.

    λ, the task order and every sampling seed are functions of the update number, so they need no storage.
    """

    policy: Policy
    teacher: Policy | None
    reference: Policy | None
    optimizer: torch.optim.Optimizer


def save_checkpoint(run_dir: Path, update: int, state: TrainState, *, keep: int) -> Path:
    """Write the state after ``update`` and delete all but the newest ``keep`` checkpoints (0 keeps all)."""
    root = run_dir / "checkpoints"
    final = root / _NAME.format(update)
    partial = root / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state.policy.model.save_pretrained(partial / "policy")
    state.policy.tokenizer.save_pretrained(partial / "policy")
    for name, frozen in (("teacher", state.teacher), ("reference", state.reference)):
        if frozen is not None:
            save_model(frozen.model, str(partial / f"{name}.safetensors"))
    torch.save(
        {"optimizer": state.optimizer.state_dict(), "torch_rng": torch.get_rng_state()}, partial / "optimizer.pt"
    )
    (partial / "state.json").write_text(json.dumps({"update": update}))
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in checkpoints(run_dir)[:-keep] if keep else []:
        shutil.rmtree(old)
    return final


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob("update-*"))


def load_checkpoint(path: Path, state: TrainState) -> int:
    """Restore everything in place and return the update that the checkpoint was written after.

    Raises:
        ValueError: the checkpoint lacks a part that this configuration needs.
    """
    state.policy.copy_weights_from(_load_policy_weights(path / "policy", state.policy))
    for name, frozen in (("teacher", state.teacher), ("reference", state.reference)):
        if frozen is None:
            continue
        file = path / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(f"{path} holds no {name}; it was written under another configuration")
        load_model(frozen.model, str(file))
    saved = torch.load(path / "optimizer.pt", weights_only=True)
    state.optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["torch_rng"])
    return int(json.loads((path / "state.json").read_text())["update"])


def _load_policy_weights(path: Path, like: Policy) -> Policy:
    # Through transformers, because save_pretrained shards large models and leaves tied weights out.
    model = type(like.model).from_pretrained(path, dtype=like.model.dtype)
    return Policy(model, like.tokenizer)
