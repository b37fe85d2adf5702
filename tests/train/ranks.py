"""Runs of the word game by several processes: started by torchrun, plays the named scenarios, writes what came of them.

torchrun --nproc-per-node 2 -m tests.train.ranks FOLDER SCENARIO...
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from stepopsd.train import episodes
from stepopsd.train.config import RunConfig
from stepopsd.train.interrupts import Stop
from stepopsd.train.trainer import Trainer
from tests.train.toy import TASKS, WordGame, config

CREDIT = {"name": "stepopsd", "teacher_refresh_every": 2, "lambda_mix": 1.0, "alpha_clip": 0.9}
OPTIM = {"lr": 1e-3, "updates": 3, "minibatch_groups": 2, "microbatch_tokens": 120}


def run_of(folder: Path, name: str, **sections) -> RunConfig:
    """Two optimiser steps per update of six groups, an anchor and a stale teacher; micro-batches of a few rows."""
    base = {"credit": CREDIT, "optim": OPTIM, "loss": {"kl_coef": 0.01}, "rollout": {"groups": 6}}
    for key, values in sections.items():
        base[key] = {**base.get(key, {}), **values} if isinstance(values, dict) else values
    return config(folder / name, folder / "model", **base)


def play(run: RunConfig) -> torch.Tensor:
    """Train, and return the parameters as one vector."""
    trainer = Trainer(run)
    trainer.run()
    return torch.cat([p.detach().flatten() for p in trainer.policy.model.parameters()])


def ddp(folder: Path) -> None:
    _keep(folder, "ddp", play(run_of(folder, "ddp")))


def fsdp2(folder: Path) -> None:
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    run = run_of(folder, "fsdp2")
    _keep(folder, "fsdp2", play(replace(run, model=replace(run.model, gradient_checkpointing=True))))
    del os.environ["ACCELERATE_USE_FSDP"]


def uneven(folder: Path) -> None:
    """The second rank's episodes all break, then all rows of one rank are dropped."""
    with _broken_groups_of_rank(1):
        _keep(folder, "uneven", play(run_of(folder, "uneven", optim={"updates": 1})))
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        _keep(folder, "uneven_fsdp2", play(run_of(folder, "uneven_fsdp2", optim={"updates": 1})))
        del os.environ["ACCELERATE_USE_FSDP"]


def stopped(folder: Path) -> None:
    """A signal reaches one rank alone, in the rollout of the third update."""
    run = run_of(folder, "stopped", optim={"updates": 3}, checkpoint_every=100)
    rank, calls, original = int(os.environ["RANK"]), [], episodes.Episodes.play_jobs

    def play_jobs(self, *args, **kwargs):
        calls.append(1)
        if rank == 1 and len(calls) == 4:  # the first evaluation is a call, too
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    episodes.Episodes.play_jobs = play_jobs
    try:
        Trainer(run).run()
    except Stop as stop:
        (folder / f"stopped-{rank}.txt").write_text(str(stop.signum))
    finally:
        episodes.Episodes.play_jobs = original
    _keep(folder, "stopped", play(run))


def killed(folder: Path) -> None:
    """To be killed from outside, and started again."""
    _keep(folder, "killed", play(run_of(folder, "killed", checkpoint_every=1)))


class _broken_groups_of_rank:
    """Episodes of one rank end as if their environment had broken."""

    def __init__(self, rank: int) -> None:
        self.wanted = int(os.environ["RANK"]) == rank

    def __enter__(self) -> None:
        self.original = original = episodes.Episodes.play_jobs

        def play_jobs(self, *args, **kwargs):
            return [replace(t, status="env_error", error="injected") for t in original(self, *args, **kwargs)]

        if self.wanted:
            episodes.Episodes.play_jobs = play_jobs

    def __exit__(self, *error: object) -> None:
        episodes.Episodes.play_jobs = self.original


def _keep(folder: Path, name: str, parameters: torch.Tensor) -> None:
    torch.save(parameters, folder / f"{name}-{os.environ.get('RANK', '0')}.pt")


SCENARIOS = {function.__name__: function for function in (ddp, fsdp2, uneven, stopped, killed)}

if __name__ == "__main__":
    episodes.AlfworldEnv = WordGame
    sys.modules["stepopsd.train.trainer"].tasks_of = lambda env, split: TASKS
    torch.set_num_threads(1)
    for scenario in sys.argv[2:]:
        SCENARIOS[scenario](Path(sys.argv[1]))
