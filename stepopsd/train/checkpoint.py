"""Checkpoints: complete or absent, checked when they are read; the newest whole one continues the run bit for bit."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model

from stepopsd.train.durable import damage, whole_folder
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
    previous: Policy | None = None

    @property
    def frozen(self) -> dict[str, Policy | None]:
        """Name -> policy that no optimiser moves."""
        return {"teacher": self.teacher, "reference": self.reference, "previous": self.previous}


def save_checkpoint(run_dir: Path, update: int, state: TrainState, *, keep: int) -> Path:
    """Write the state after ``update`` and delete all but the newest ``keep`` checkpoints (0 keeps all)."""
    final = run_dir / "checkpoints" / _NAME.format(update)
    with whole_folder(final) as folder:
        state.policy.model.save_pretrained(folder / "policy")
        state.policy.tokenizer.save_pretrained(folder / "policy")
        for name, frozen in state.frozen.items():
            if frozen is not None:
                save_model(frozen.model, str(folder / f"{name}.safetensors"))
        rng = torch.get_rng_state()
        torch.save({"optimizer": state.optimizer.state_dict(), "torch_rng": rng}, folder / "optimizer.pt")
        (folder / "state.json").write_text(json.dumps({"update": update}))
    for old in checkpoints(run_dir)[:-keep] if keep else []:
        shutil.rmtree(old)
    return final


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob("update-*"))


def newest_whole(run_dir: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written; None without any.

    Damaged newer ones are put aside as ``damaged-update-N`` with a warning that says what is wrong with them.
    """
    for path in reversed(checkpoints(run_dir)):
        wrong = damage(path)
        if not wrong:
            return path
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        warnings.warn(f"{path} is damaged ({wrong}); it is now {aside.name}, the one before is used", stacklevel=2)
    return None


def load_checkpoint(path: Path, state: TrainState) -> int:
    """Restore everything in place and return the update that the checkpoint was written after.

    Raises:
        ValueError: the checkpoint lacks a part that this configuration needs.
    """
    state.policy.copy_weights_from(_load_policy_weights(path / "policy", state.policy))
    for name, frozen in state.frozen.items():
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
