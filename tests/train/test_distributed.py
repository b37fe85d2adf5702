"""Two processes on this machine train like one: gradients, records, stops and checkpoints."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stepopsd.train import episodes
from stepopsd.train.checkpoint import checkpoints
from stepopsd.train.distributed import Ranks, launched_ranks
from stepopsd.train.interrupts import Interrupts, Stop
from stepopsd.train.merge import merge_records
from stepopsd.train.trainer import Trainer
from tests.train import ranks
from tests.train.conftest import make_policy
from tests.train.toy import TASKS, WordGame, config

ROOT = Path(__file__).parents[2]
#: What a clock, the layout of micro-batches or the number of processes writes.
OWN = ("seconds", "gap", "microbatch_tokens", "memory", "padding")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One process in this one, two in torchrun's, on the same model and games."""
    folder = tmp_path_factory.mktemp("ranks")
    policy = make_policy()
    policy.model.save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episodes, "AlfworldEnv", WordGame)
        patch.setattr("stepopsd.train.trainer.tasks_of", lambda env, split: TASKS)
        launched = launch(folder, "ddp", "fsdp2", "uneven", "stopped")
        ranks._keep(folder, "one", ranks.play(ranks.run_of(folder, "one")))
        said, _ = launched.communicate(timeout=500)
        assert launched.returncode == 0, said[-4000:]
        yield folder


def launch(folder, *scenarios):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
               "--rdzv-endpoint", "localhost:0", "-m", "tests.train.ranks", str(folder), *scenarios]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def parameters(folder, name, rank=0):
    return torch.load(folder / f"{name}-{rank}.pt")


def records(folder, name, log="metrics"):
    return [json.loads(line) for line in (folder / name / f"{log}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_to_the_parameters_of_one(folder, kind):
    start = torch.cat([p.detach().flatten() for p in make_policy().model.parameters()])
    one, two = parameters(folder, "one"), parameters(folder, kind)
    assert (one - start).abs().max() > 1e-3
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    assert torch.equal(two, parameters(folder, kind, rank=1))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_records_are_of_all_processes(folder, kind):
    for mine, theirs in zip(records(folder, kind), records(folder, "one"), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if not any(part in name for part in OWN):
                # Quantiles and a correlation are means of the ranks' own.
                loose = name.endswith(("cosine", "median", "scored_share", "scored_share_plain")) or "/p" in name
                assert mine[name] == pytest.approx(value, rel=0.2 if loose else 1e-3, abs=1e-2 if loose else 1e-5), name


def test_panels_are_played_in_shares_and_written_in_order(folder):
    assert records(folder, "ddp", "evaluations") == records(folder, "one", "evaluations")


def test_a_rank_without_a_row_waits_for_nobody(folder):
    alone = parameters(folder, "uneven")
    start = torch.cat([p.detach().flatten() for p in make_policy().model.parameters()])
    assert (alone - start).abs().max() > 1e-4
    torch.testing.assert_close(parameters(folder, "uneven_fsdp2"), alone, rtol=0, atol=1e-5)
    assert records(folder, "uneven")[0]["env_failures"] == 12


def test_a_signal_to_one_rank_stops_both_saved_and_the_run_goes_on_to_the_same_bits(folder):
    assert [(folder / f"stopped-{rank}.txt").read_text() for rank in (0, 1)] == [str(int(signal.SIGTERM))] * 2
    assert torch.equal(parameters(folder, "stopped"), parameters(folder, "ddp"))
    assert [r["loss"] for r in records(folder, "stopped")] == [r["loss"] for r in records(folder, "ddp")]


@pytest.mark.slow
def test_a_killed_rank_ends_the_launch_and_the_next_one_goes_on_to_the_same_bits(folder):
    launched = launch(folder, "killed")
    assert launched.stdout is not None
    while "update    1/3" not in launched.stdout.readline():
        assert launched.poll() is None
    workers = subprocess.run(["pgrep", "-P", str(launched.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    launched.communicate(timeout=120)
    assert launched.returncode != 0
    assert not (folder / "killed-0.pt").exists()
    again = launch(folder, "killed")
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said[-4000:]
    assert torch.equal(parameters(folder, "killed"), parameters(folder, "ddp"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_one_process_goes_on_from_a_checkpoint_of_two(folder, kind):
    run = ranks.run_of(folder, kind)
    if kind == "fsdp2":
        run = replace(run, model=replace(run.model, gradient_checkpointing=True))
    on = Trainer(replace(run, optim=replace(run.optim, updates=4)))
    assert on._resume() == 3
    reached = torch.cat([p.detach().flatten() for p in on.policy.model.parameters()])
    torch.testing.assert_close(reached, parameters(folder, kind), rtol=0, atol=0)
    one = torch.load(checkpoints(folder / "one")[-1] / "optimizer.pt")["optimizer"]["state"]
    for index, state in on.optimizer.state_dict()["state"].items():
        torch.testing.assert_close(state["exp_avg"], one[index]["exp_avg"], rtol=1e-3, atol=1e-6)


def test_one_process_is_a_group_of_one():
    alone = Ranks()
    assert alone.own([1, 2, 3]) == [1, 2, 3]
    assert alone.gathered("x") == ["x"]
    assert alone.places([5, 3]) == ([0, 1], 2)
    with pytest.raises(KeyError), alone.together():
        raise KeyError("mine")


def test_every_item_is_dealt_to_one_rank():
    parts = [Ranks.own(_rank(rank, 3), list(range(8))) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


def _rank(rank, world):
    self = object.__new__(Ranks)
    self.rank, self.world = rank, world
    return self


def test_counts_add_up_and_means_are_weighted():
    sizes = [{"episodes": 3, "tokens": 30}, {"episodes": 1, "tokens": 10}]
    merged = merge_records(
        [
            {"update": 2, "success": 1.0, "env_failures": 1, "seconds": 2.0, "delta/count": 4, "delta/mean": 1.0,
             "delta/std": 0.0, "delta/min": -1.0, "shaped/std": 1.0, "delta/peer/up/count": 1,
             "delta/peer/up/mean": 2.0},
            {"update": 2, "success": 0.0, "env_failures": 2, "seconds": 5.0, "delta/count": 12, "delta/mean": 0.0,
             "delta/std": 0.0, "delta/min": -7.0, "shaped/std": 1.0},
        ],
        sizes,
    )  # fmt: skip
    assert merged == {
        "update": 2, "success": 0.75, "env_failures": 3, "seconds": 5.0, "delta/count": 16, "delta/mean": 0.25,
        "delta/std": math.sqrt(0.1875), "delta/min": -7.0, "shaped/std": 1.0, "delta/peer/up/count": 1,
        "delta/peer/up/mean": 2.0,
    }  # fmt: skip


def test_a_rank_without_episodes_does_not_count():
    sizes = [{"episodes": 0, "tokens": 0}, {"episodes": 4, "tokens": 9}]
    assert merge_records([{"success": float("nan")}, {"success": 0.5}], sizes) == {"success": 0.5}


def test_a_signal_waits_while_other_processes_do():
    with Interrupts(waits=True) as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)  # nothing yet: this rank may be in the middle of a collective
        os.kill(os.getpid(), signal.SIGINT)  # passed on by the launcher
        with pytest.raises(Stop) as stopped, interrupts.heeded():
            raise AssertionError("the signal that waited comes first")
    assert stopped.value.signum == signal.SIGTERM


def test_launches_that_the_trainer_cannot_serve_are_refused(tmp_path):
    run = config(tmp_path, tmp_path, rollout={"groups": 2})
    with pytest.raises(ValueError, match=r"rollout\.groups must be at least the number of processes, 3, got 2"):
        launched_ranks(_launch(processes=3), run, Interrupts())
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps must be 1, got 4"):
        launched_ranks(_launch(steps=4), run, Interrupts())
    with pytest.raises(ValueError, match=r"mixed_precision must be no, got bf16: model\.dtype"):
        launched_ranks(_launch(precision="bf16"), run, Interrupts())


def _launch(processes=1, steps=1, precision="no"):
    return SimpleNamespace(
        num_processes=processes, process_index=0, gradient_accumulation_steps=steps, mixed_precision=precision
    )
