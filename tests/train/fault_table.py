"""Every fault a run may meet, injected into real runs of the command line: ``python -m tests.train.fault_table``.

Prints ``fault · policy · outcome``; the outcome is read from the exit code and from what the run left behind. A run
that stopped is started again without the fault and compared with one that never met it. Exits with 1 where a policy
did not hold.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from unittest import mock

import torch
from transformers.utils.logging import disable_progress_bar

from stepopsd.cli import main as command_line
from stepopsd.envs.searchqa.protocol import SearchPrompting, parse_response
from stepopsd.envs.searchqa.world import bundled_passages
from stepopsd.retrieval import RetrieverError, open_retriever
from stepopsd.rollout.engines.results import LostResults
from stepopsd.rollout.engines.transformers import TransformersSession
from stepopsd.train.checkpoint import checkpoints
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import dump_config
from stepopsd.train.policy import Policy
from stepopsd.train.step import PolicyStep
from tests.train import search_toy, toy
from tests.train.conftest import make_policy
from tests.train.faulty_games import FLAG, Crashing, Hanging, Terminating, once

UPDATES = 3

@contextmanager
def playing(game: type) -> Iterator[None]:
    with mock.patch("stepopsd.train.episodes.AlfworldEnv", game):
        yield


@contextmanager
def at_update(owner: object, name: str, update: int, broken: Callable) -> Iterator[None]:
    """From ``update`` on, ``broken(original, *arguments)`` in the place of a method."""
    from stepopsd.train.trainer import Trainer

    now, original, begin = [0], getattr(owner, name), Trainer.prepare

    def prepare(self, number):
        now[0] = number
        return begin(self, number)

    def call(*args, **kwargs):
        return broken(original, *args, **kwargs) if now[0] >= update else original(*args, **kwargs)

    with mock.patch.object(Trainer, "prepare", prepare), mock.patch.object(owner, name, call):
        yield


def raising(error: BaseException) -> Callable:
    def broken(original, *args, **kwargs):
        raise error

    return broken


def only_first(broken: Callable) -> Callable:
    def maybe(original, *args, **kwargs):
        return broken(original, *args, **kwargs) if once() else original(*args, **kwargs)

    return maybe


def infinite(original, *args):
    return original(*args) * float("inf")


def scarce(original, self, input_ids, attention_mask, targets):
    if input_ids.numel() > 300:
        raise torch.OutOfMemoryError("injected")
    return original(self, input_ids, attention_mask, targets)


def no_space(original, content, path):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


@contextmanager
def retriever_down(update: int) -> Iterator[None]:
    """The bundled retriever, which cannot be reached from ``update`` on."""

    class Reached:
        def __init__(self, inner):
            self.inner = inner

        def search(self, queries, k):
            return self.inner.search(queries, k)

    def opened(*args, **kwargs):
        return Reached(open_retriever(*args, **kwargs))

    down = at_update(Reached, "search", update, raising(RetrieverError("injected: connection refused")))
    with mock.patch("stepopsd.train.search.open_retriever", opened), down:
        yield


@contextmanager
def searching() -> Iterator[None]:
    """Every response is a search: an untrained model writes none."""

    def parse(prompting, response):
        return parse_response(f"<search>{zlib.crc32(response.encode()) % 97} of the</search>")

    spans = mock.patch("stepopsd.rollout.loop.step_spans", return_value={})
    with mock.patch.object(SearchPrompting, "parse", parse), spans:
        yield


@dataclass(frozen=True)
class Fault:
    """``check`` reads (records, records of an untroubled run) and returns what it saw, or raises AssertionError."""

    name: str
    policy: str
    inject: Callable[[], object]
    code: int
    check: Callable[[list[dict], list[dict]], str]
    world: str = "words"
    change: Callable[[RunConfig], RunConfig] = lambda run: run


def same(records: list[dict], clean: list[dict]) -> str:
    assert bare(records) == bare(clean)
    return f"{len(records)} updates, equal to an untroubled run's"


def close(records: list[dict], clean: list[dict]) -> str:
    for mine, theirs in zip(records, clean, strict=True):
        assert abs(mine["loss"] - theirs["loss"]) < 1e-4
    assert records[-1]["microbatch_tokens"] < clean[-1]["microbatch_tokens"]
    return f"{len(records)} updates, losses as untroubled, micro-batches of {records[-1]['microbatch_tokens']} tokens"


def counted(key: str, number: int, words: str) -> Callable[[list[dict], list[dict]], str]:
    def check(records: list[dict], clean: list[dict]) -> str:
        assert len(records) == len(clean)
        assert sum(record[key] for record in records) == number
        return f"{len(records)} updates, {number} {words}"

    return check


def bare(records: list[dict]) -> list[dict]:
    """The records without what a clock, the machine or a connection had a part in."""
    measured = ("seconds", "_mib", "retriever/")
    return [{k: v for k, v in record.items() if not any(part in k for part in measured)} for record in records]


def with_workers(run: RunConfig) -> RunConfig:
    return replace(run, env=replace(run.env, workers=1, step_timeout_s=20.0))


FAULTS = (
    Fault("environment worker killed", "its episode is played again in a new one", lambda: playing(Crashing), 0, same,
          change=with_workers),
    Fault("environment hangs", "its episode is left out and counted", lambda: playing(Hanging), 0,
          counted("env_failures", 1, "episode left out"), change=with_workers),
    Fault("retriever goes down", "stops, saved", lambda: retriever_down(2), 1, same, world="search"),
    Fault("sampler loses results", "stops, saved",
          lambda: at_update(TransformersSession, "generate", 2, raising(LostResults("injected"))), 1, same),
    Fault("loss not finite once", "the step is skipped and counted",
          lambda: at_update(PolicyStep, "_loss", 2, only_first(infinite)), 0,
          counted("skipped_steps", 1, "step skipped")),
    Fault("loss not finite for good", "stops; the checkpoint is from before",
          lambda: at_update(PolicyStep, "_loss", 2, infinite), 1, same,
          change=lambda run: replace(run, optim=replace(run.optim, max_skipped_steps=0))),
    Fault("out of memory in the update", "half the micro-batch, the same work again",
          lambda: at_update(Policy, "read_targets", 1, scarce), 0, close),
    Fault("out of memory for one row", "stops and names the setting",
          lambda: at_update(Policy, "read_targets", 2, raising(torch.OutOfMemoryError("injected"))), 1, same),
    Fault("disk full at a checkpoint", "stops; the checkpoint before is whole",
          lambda: at_update(torch, "save", 2, no_space), 1, same),
    Fault("SIGTERM in a rollout", "stops, saved", lambda: playing(Terminating), 143, same),
)  # fmt: skip


def runs(folder: Path, world: str) -> RunConfig:
    """The run of one world, in ``folder``; its model is made on the spot."""
    if world == "search":
        model = search_toy.save_model(folder / "model", bundled_passages())
        run = search_toy.config(folder / "run", model, optim={"updates": UPDATES}, credit={"name": "grpo"})
        return replace(run, checkpoint_every=1, env=replace(run.env, eval_splits=()))
    policy = make_policy()
    policy.model.save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    credit = {"name": "stepopsd", "lambda_mix": 1.0, "alpha_clip": 0.9}
    run = toy.config(folder / "run", folder / "model", credit=credit, optim={"updates": UPDATES}, checkpoint_every=1)
    return replace(run, env=replace(run.env, eval_splits=()))


def execute(run: RunConfig) -> tuple[int, list[dict], str]:
    """Exit code of ``stepopsd train``, the records it left, and its last words."""
    file = Path(run.run_dir).with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dump_config(run))
    said = StringIO()
    world = searching() if run.env.name == "searchqa" else nullcontext()
    with world, redirect_stdout(StringIO()), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = command_line(["train", "--config", str(file)])
    log = Path(run.run_dir) / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return code, records, said.getvalue().strip()


def meet(fault: Fault, run: RunConfig, clean: list[dict]) -> str:
    """Run into the fault, go on where it stopped the run, and say what came of it; AssertionError where it is wrong."""
    with fault.inject():
        code, records, said = execute(run)
    assert code == fault.code, f"exit code {code}, not {fault.code}: {said}"
    if code == 0:
        return f"exit 0; {fault.check(records, clean)}"
    saved = checkpoints(Path(run.run_dir))
    assert saved, "no checkpoint"
    assert "Traceback" not in said
    where = saved[-1].name
    code, records, said = execute(run)
    assert code == 0, said
    return f"exit {fault.code}, {where} kept; started again: {fault.check(records, clean)}"


def rows(folder: Path) -> Iterator[tuple[Fault, str, bool]]:
    """Every fault with its outcome, and whether the policy held."""
    untroubled: dict[str, tuple[RunConfig, list[dict]]] = {}
    with playing(toy.WordGame), mock.patch("stepopsd.train.trainer.tasks_of", tasks):
        for number, fault in enumerate(FAULTS):
            if fault.world not in untroubled:
                run = runs(folder / fault.world, fault.world)
                code, records, said = execute(run)
                assert code == 0, said
                untroubled[fault.world] = run, records
            run, clean = untroubled[fault.world]
            run = fault.change(replace(run, run_dir=str(folder / f"fault-{number}")))
            with mock.patch.dict(os.environ, {FLAG: str(folder / f"flag-{number}")}):
                try:
                    yield fault, meet(fault, run, clean), True
                except AssertionError as error:
                    yield fault, f"FAILED: {error}", False


def tasks(env, split):
    from stepopsd.train.episodes import tasks_of

    return toy.TASKS if env.name == "alfworld" else tasks_of(env, split)


def main() -> int:
    """Print the table."""
    torch.set_num_threads(1)
    failed = 0
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        for fault, outcome, held in rows(Path(folder)):
            print(f"{fault.name} · {fault.policy} · {outcome}", flush=True)
            failed += not held
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
