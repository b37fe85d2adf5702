"""The update loop: play groups, assign credit, take one policy step, keep evidence."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepopsd.envs.base import Task
from stepopsd.retrieval import RetrieverError
from stepopsd.rollout.engines.results import EngineError
from stepopsd.rollout.records import Batch
from stepopsd.train.accounting import Forwards
from stepopsd.train.checkpoint import TrainState, checkpoints, load_checkpoint, newest_whole, save_checkpoint
from stepopsd.train.config import RunConfig
from stepopsd.train.credit import Credit
from stepopsd.train.deadline import Deadline, DeadlineReached
from stepopsd.train.device import wants_cpu
from stepopsd.train.distributed import launched_ranks
from stepopsd.train.episodes import Episodes, tasks_of, world
from stepopsd.train.evaluation import (
    episodes_of_panel,
    in_panel_order,
    panel,
    panel_of_update,
    play_panel,
    success_by_kind,
)
from stepopsd.train.interrupts import Interrupts
from stepopsd.train.merge import merge_records
from stepopsd.train.metrics import JsonLines
from stepopsd.train.metrics import plain as number
from stepopsd.train.needs import check_replay
from stepopsd.train.policy import load_policy
from stepopsd.train.precision import Masters
from stepopsd.train.preparation import Preparation
from stepopsd.train.prepared import Prepared
from stepopsd.train.progress import Progress
from stepopsd.train.provenance import provenance
from stepopsd.train.run_dir import open_run_dir
from stepopsd.train.search import retriever_facts, search_retriever
from stepopsd.train.sharding import Sharded, wants_sharding
from stepopsd.train.step import PolicyStep
from stepopsd.train.trackers import require_trackers
from stepopsd.train.transcripts import choose_transcripts, transcript


class Trainer:
    """One run. Everything it needs is checked before the model is loaded; everything it learns is in ``run_dir``.

    Example:
        >>> Trainer(load_config("run.yaml")).run()  # doctest: +SKIP
    """

    def __init__(self, config: RunConfig) -> None:
        from accelerate import Accelerator
        from transformers.utils.logging import disable_progress_bar

        self.config = config
        self.run_dir = Path(config.run_dir)
        check_replay(config, world(config.env))
        require_trackers(config)
        self.tasks = panel(tasks_of(config.env, config.env.train_split), config.env.train_games)
        self.panels = {split: self._games(split) for split in config.env.eval_splits}
        retriever = search_retriever(config.env)
        disable_progress_bar()
        self.accelerator = Accelerator(cpu=wants_cpu(config.device))
        self.interrupts = Interrupts(waits=self.accelerator.num_processes > 1)
        self.ranks = launched_ranks(self.accelerator, config, self.interrupts)
        torch.manual_seed(config.seed)
        self.policy = load_policy(config.model, self.accelerator.device, config.lora)
        self.policy.model.eval()
        self.policy.packed = config.optim.packing == "packed"
        self.episodes = Episodes(config, self.policy, retriever, processes=self.ranks.world)
        self.episodes.require_window(self.tasks)
        self.credit = Credit(config, self.policy)
        method = self.credit.brancher
        lagged = method is not None and method.branching == "lagged"
        self.previous = self.policy.frozen_copy() if lagged else None
        self.preparation = Preparation(
            config, self.policy, self.episodes, self.credit, self.ranks, self.tasks, self.previous
        )
        self.reference = self.policy.starting_copy() if self._anchored_at("start") else None
        shards = wants_sharding(self.accelerator, masters=config.optim.master_weights)
        self.sharded = Sharded(self.policy, shards) if shards is not None else None
        trained = [p for p in (self.sharded or self.policy).model.parameters() if p.requires_grad]
        rounded = config.model.dtype != "float32" and config.optim.master_weights and self.sharded is None
        self.masters = Masters(trained) if rounded else None
        self.optimizer = torch.optim.AdamW(
            self.masters.weights if self.masters else trained,
            lr=config.optim.lr, betas=config.optim.betas, weight_decay=config.optim.weight_decay,
        )
        self.step = PolicyStep(
            self.policy, self.optimizer, self.accelerator, config, self.ranks, self.sharded, self.masters
        )
        self.forwards = Forwards(self.policy, self.reference, self.episodes.engine)
        self.metrics, self.evaluations, self.transcripts = (
            JsonLines(self.run_dir / f"{name}.jsonl", writes=self.ranks.is_main)
            for name in ("metrics", "evaluations", "transcripts")
        )
        if self.ranks.rank:
            torch.manual_seed(config.seed + 1_000_003 * self.ranks.rank)  # dropout of its own
        self.deadline = Deadline(config.deadline)
        self._done = 0  # updates
        self._generated = 0  # sampled tokens of all updates so far

    def run(self) -> Path:
        """Train to the end that ``optim`` sets and return the run directory; continues from the newest checkpoint.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM (``Stop`` has its number); the updates so far are saved.
            DeadlineReached: ``deadline`` leaves no time for another update; the updates so far are saved.
            RetrieverError: too many episodes lost the retriever; the updates so far are saved.
            EngineError: the sampler lost results or cannot be reached; the updates so far are saved.
        """
        with self.ranks.together():
            if self.ranks.is_main:
                facts = provenance(self.policy.model) | retriever_facts(self.episodes.retriever)
                facts |= {"processes": self.ranks.world, "sharded": self.sharded is not None}
                open_run_dir(self.config, facts, begun=self.metrics.path.exists())
        self._done = self._resume()
        progress = Progress(self.config, self._done, shown=self.ranks.is_main)
        try:
            with self.interrupts:
                self._train(progress)
        except (KeyboardInterrupt, DeadlineReached, RetrieverError, EngineError) as stopped:
            progress.note(self._stopped(stopped))
            raise
        finally:
            progress.close()
            self.episodes.close()
        return self.run_dir

    def _train(self, progress: Progress) -> None:
        self._rng = torch.get_rng_state()
        if self._owes_evaluation(self._done):
            self.evaluations.cut_after(self._done - 1)
            self._evaluate(self._done, progress)
        while not self._is_last(self._done):
            with self.ranks.together():
                self.deadline.require_time()
            record = self._update(self._done + 1)
            self._done += 1
            self._rng = torch.get_rng_state()
            with self.ranks.together():
                self.interrupts.release()
            progress.update(record)
            if self._due(self._done, self.config.eval.every):
                self._evaluate(self._done, progress)
            if self._due(self._done, self.config.checkpoint_every):
                self._save(self._done)
            self.deadline.note()

    def _games(self, split: str) -> list[Task]:
        return self.tasks if split == self.config.env.train_split else tasks_of(self.config.env, split)

    # one update

    def _update(self, update: int) -> dict[str, Any]:
        self.forwards.since()  # evaluations are no part of an update
        prepared = self.prepare(update)
        started = time.perf_counter()
        self.interrupts.hold()  # until the update is counted: its parts are worth nothing alone
        if self.previous is not None:
            self.previous.copy_weights_from(self.policy)
        with self.ranks.together():
            reference = self._reference_logprobs(prepared.batch)
        losses = self.step.run(
            prepared.batch, reference, update, prepared.result, importance=prepared.importance
        )
        self.credit.refresh(update)
        seconds = time.perf_counter() - started
        if self.ranks.is_main and self._due(update, self.config.transcripts_every):
            self._store_transcripts(update, prepared)
        record = {"update": update, **prepared.metrics}
        record["seconds"] += seconds
        record["train_seconds"] += seconds
        # Before the first step current and old policy are the same weights: any gap is the sampler's.
        first = {"sampler_gap_max": losses.pop("old_gap_max"), "sampler_kl": losses.pop("old_kl")}
        record = first | record
        record |= losses | prepared.result.later_metrics() | prepared.spent() | self.forwards.since()
        if self.ranks.world > 1:
            mine = {name: number(value) for name, value in record.items()}
            record = merge_records(*zip(*self.ranks.gathered((mine, prepared.sizes())), strict=True))
        self._generated += record["tokens/generated"]
        self.metrics.append(record)
        return record

    def prepare(self, update: int) -> Prepared:
        """Play the groups of an update and assign credit; parameters and logs stay as they are.

        Args:
            update: Counted from 1; with the seed it fixes tasks and sampling.

        Raises:
            RuntimeError: No episode can be trained on.
        """
        return self.preparation.run(update, ahead=not self._due(update, self.config.eval.every))

    def _anchored_at(self, where: str) -> bool:
        return self.config.loss.kl_coef > 0 and self.config.loss.kl_reference == where

    def _reference_logprobs(self, batch: Batch) -> Tensor | None:
        reference = self.credit.snapshot if self._anchored_at("teacher") else self.reference
        if reference is None:
            return None
        return reference.score(
            batch.input_ids, batch.attention_mask, batch.response_mask,
            temperature=self.config.rollout.temperature, max_tokens=self.config.optim.microbatch_tokens,
        )

    # evidence

    def _evaluate(self, update: int, progress: Progress) -> None:
        for name, tasks in self._panels_of(update).items():
            share = slice(self.ranks.rank, None, self.ranks.world)
            with self.ranks.together():
                records, _ = play_panel(self.episodes, tasks, self.config.eval, name, update, share=share)
            if self.ranks.world > 1:
                records = in_panel_order(self.ranks.gathered(records), tasks)
            for record in records:
                self.evaluations.append(record)
            progress.evaluation(update, name, success_by_kind(records))

    def _panels_of(self, update: int) -> dict[str, list[Task]]:
        return {name: panel_of_update(tasks, self.config.eval, update) for name, tasks in self.panels.items()}

    def _owes_evaluation(self, done: int) -> bool:
        """Whether the run was interrupted in the middle of the panels (or has not played the first ones)."""
        episodes = sum(episodes_of_panel(tasks, self.config.eval) for tasks in self._panels_of(done).values())
        due = done == 0 or self._due(done, self.config.eval.every)
        return self.ranks.told(due and self.evaluations.count(done) < episodes)

    def _store_transcripts(self, update: int, prepared: Prepared) -> None:
        trajectories, rows = prepared.trajectories, prepared.rows
        tokens = prepared.result.tokens
        trained = {row.trajectory for row in rows}
        chosen = choose_transcripts(trajectories, self.config.transcripts, trained, self.config.transcript_groups)
        for index in chosen:
            record = transcript(index, trajectories, rows, prepared.plain, prepared.batch, tokens, self.policy)
            self.transcripts.append({"update": update, **record})

    # the run directory

    def _resume(self) -> int:
        with self.ranks.together():
            saved = newest_whole(self.run_dir) if self.ranks.is_main else None
        saved = self.ranks.told(saved)
        done = load_checkpoint(saved, self._state(), self.ranks.rank) if saved else 0
        for log in (self.metrics, self.evaluations, self.transcripts):
            # Without a checkpoint the run starts over, the evaluation before the first update included.
            log.cut_after(done if saved else -1)
        self._generated = self.ranks.told(int(self.metrics.total("tokens/generated")))
        return done

    def _state(self) -> TrainState:
        frozen = self.credit.snapshot, self.reference
        return TrainState(self.policy, *frozen, self.optimizer, self.previous, self.sharded, self.masters)

    def _save(self, update: int) -> None:
        save_checkpoint(self.run_dir, update, self._state(), keep=self.config.keep_checkpoints, ranks=self.ranks)

    def _stopped(self, why: BaseException) -> str:
        if self._done and not self.interrupts.held:
            torch.set_rng_state(self._rng)  # of the last whole update
            self._save(self._done)
        saved = checkpoints(self.run_dir)
        where = f"after {saved[-1].name}" if saved else "from the start"
        return f"stopped ({why or 'interrupted'}); the same command continues {where}"

    def _is_last(self, update: int) -> bool:
        optim = self.config.optim
        spent = optim.generated_tokens > 0 and self._generated >= optim.generated_tokens
        return update >= optim.updates or spent

    def _due(self, update: int, every: int) -> bool:
        return self._is_last(update) or (every > 0 and update % every == 0)
