"""Checkpoints: complete or absent, checked when they are read; the newest whole one continues the run bit for bit."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepopsd.train.distributed import Ranks
from stepopsd.train.durable import damage, whole_folder
from stepopsd.train.policy import Policy
from stepopsd.train.precision import Masters
from stepopsd.train.sharding import Sharded, pieces_of, whole_state

_NAME = "update-{:06d}"


@dataclass(frozen=True, slots=True)
class TrainState:
    """What a run needs beside its configuration.

    λ, the task order and every sampling seed are functions of the update number, so they need no storage.

    Attributes:
        policy, teacher, reference, previous: Whole on every rank.
        sharded: The policy in pieces, where the optimiser holds pieces.
        masters: The exact weights, where the policy's own are rounded.
    """

    policy: Policy
    teacher: Policy | None
    reference: Policy | None
    optimizer: torch.optim.Optimizer
    previous: Policy | None = None
    sharded: Sharded | None = None
    masters: Masters | None = None

    @property
    def holder(self) -> Sharded | Masters | None:
        """Who has the weights that the optimiser moves, where they are not the policy's own."""
        return self.sharded or self.masters

    @property
    def frozen(self) -> dict[str, Policy | None]:
        """Name -> policy that no optimiser moves."""
        return {"teacher": self.teacher, "reference": self.reference, "previous": self.previous}


def save_checkpoint(run_dir: Path, update: int, state: TrainState, *, keep: int, ranks: Ranks | None = None) -> Path:
    """Write the state after ``update`` and delete all but the newest ``keep`` checkpoints (0 keeps all).

    All ranks call it and rank 0 writes, so that a checkpoint does not depend on how many there are.
    """
    ranks = ranks or Ranks()
    final = run_dir / "checkpoints" / _NAME.format(update)
    content: dict[str, Any] = {"optimizer": whole_state(state.optimizer.state_dict())}
    if state.holder is not None and state.policy.model.dtype != torch.float32:
        content["weights"] = state.holder.exact()
    rngs = ranks.gathered(torch.get_rng_state())
    with ranks.together():
        if ranks.is_main:
            _write(final, update, state, content | {"torch_rng": rngs[0], "rank_rngs": rngs[1:]})
            for old in checkpoints(run_dir)[:-keep] if keep else []:
                shutil.rmtree(old)
    return final


def _write(final: Path, update: int, state: TrainState, content: dict[str, Any]) -> None:
    with whole_folder(final) as folder:
        state.policy.save(folder / "policy")
        for name, frozen in state.frozen.items():
            if frozen is not None:
                frozen.save_weights(folder / f"{name}.safetensors")
        torch.save(content, folder / "optimizer.pt")
        (folder / "state.json").write_text(json.dumps({"update": update}))


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


def load_checkpoint(path: Path, state: TrainState, rank: int = 0) -> int:
    """Restore everything in place and return the update that the checkpoint was written after.

    A rank that the checkpoint knows no random state of, there having been fewer, keeps its own.

    Raises:
        ValueError: the checkpoint lacks a part that this configuration needs.
    """
    state.policy.load(path / "policy")
    for name, frozen in state.frozen.items():
        if frozen is None:
            continue
        file = path / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(f"{path} holds no {name}; it was written under another configuration")
        frozen.load_weights(file)
    saved = torch.load(path / "optimizer.pt", weights_only=True)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    state.optimizer.load_state_dict(pieces_of(saved["optimizer"], parameters))
    if state.holder is not None:
        state.holder.restore(saved.get("weights"))
    rngs = [saved["torch_rng"], *saved.get("rank_rngs", [])]
    if rank < len(rngs):
        torch.set_rng_state(rngs[rank])
    return int(json.loads((path / "state.json").read_text())["update"])
