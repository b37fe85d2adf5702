"""``stepopsd sft``: a model that has seen an expert play, so that groups have something to compare.

Where no rollout of a group wins, nothing is learned; a warm start of 10 to 40 % success is what GRPO needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import yaml
from tyro.conf import arg

from stepopsd.envs.base import Task
from stepopsd.experiments.expert_play import Expert, Play, iter_plays
from stepopsd.experiments.expert_rows import training_rows, trajectory_of
from stepopsd.experiments.fit_state import FitState
from stepopsd.experiments.play_log import PlayLog
from stepopsd.experiments.sft import FitConfig, WeightedRow, fit
from stepopsd.options.checks import Count, PositiveFloat, PositiveInt, check_fields, within
from stepopsd.rollout.contexts import ContextPolicy
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import differences, dump_config, from_tree, load_config, to_tree

#: Keys of the run that imitation reads, and those among them that change nothing but its speed and place.
_READ = ("model.", "env.", "rollout.", "seed", "sft.")
_MAY_CHANGE = frozenset({
    "env.workers", "env.games", "env.step_timeout_s", "env.episode_timeout_s", "env.crash_retries", "sft.out",
    "sft.checkpoint_every",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class SftConfig:
    """What is imitated, and how.

    Attributes:
        expert: ``hand``, which sees what the agent sees and searches as it would have to, or ``planner``, which knows
            where everything is.
        games: Games of ``env.train_split``, spread evenly; 0 takes all.
        noise: Share of random actions, played but not imitated; the expert shows how to go on from there.
        epochs: Passes over the rows.
        lr: Peak AdamW learning rate; warm-up, then a cosine to 5 %.
        warmup_steps: Optimiser steps of warm-up.
        batch_tokens: Padded tokens per optimiser step.
        checkpoint_every: Optimiser steps between states to go on from; 0 writes none.
        out: Folder for the model; empty takes ``run_dir`` with ``-sft`` behind it.
    """

    expert: Expert = "hand"
    games: Count = 0
    noise: Annotated[float, within(0.0, 0.9)] = 0.1
    epochs: PositiveFloat = 1.0
    lr: Annotated[float, within(0.0, 1.0)] = 1e-5
    warmup_steps: Count = 20
    batch_tokens: PositiveInt = 16384
    checkpoint_every: Count = 200
    out: str = ""

    def __post_init__(self) -> None:
        check_fields("sft", self)


@dataclass(frozen=True, slots=True)
class SftRun:
    """The run whose prompts are used, and the imitation."""

    run: Annotated[RunConfig, arg(name="")] = field(default_factory=RunConfig)
    sft: SftConfig = field(default_factory=SftConfig)


def warm_start_on_expert(run: RunConfig, sft: SftConfig, *, say: Callable[[str], None] = print) -> Path:
    """Train ``run.model.path`` on an expert's episodes and save it to a folder of its own.

    Prompts, chat template, context layout and response masks are those that training with ``run`` uses; only tokens
    of the expert's responses carry loss. A warm start that was cut short goes on where it was, to the same parameters
    on the same machine; a finished one is left as it is.

    Args:
        run: Model, environment and context.
        sft: What is imitated, and how.
        say: Receives progress lines.

    Returns:
        The folder: the model with its tokenizer (what ``--model.path`` takes), ``plays.jsonl`` with the episodes in
        words, ``config.yaml`` and ``sft.yaml`` with the settings, and at the end ``sft.json`` with the numbers of
        games, rows and tokens and the losses.

    Raises:
        ValueError: There is no expert for the environment, the folder holds something else, a game cannot be read or
            won, prompts exceed the context (all before the expert plays), or no episode was won.
        FileNotFoundError: Games or model are missing.
        BrokenProcessPool: A process that played was killed; the same call goes on.

    Example:
        >>> warm_start_on_expert(run, SftConfig(games=200))     # doctest: +SKIP
    """
    from stepopsd.train.device import device_of
    from stepopsd.train.episodes import Episodes, tasks_of
    from stepopsd.train.evaluation import panel
    from stepopsd.train.policy import load_policy
    from stepopsd.train.provenance import provenance

    if run.env.name != "alfworld":
        raise ValueError(f"env.name must be alfworld: stepopsd sft has no expert for {run.env.name}")
    out = Path(sft.out or f"{run.run_dir}-sft")
    tasks = panel(tasks_of(run.env, run.env.train_split), sft.games)
    device = device_of(run.device)
    _open(out, run, sft)
    if (out / "sft.json").exists():
        say(f"{out} holds this warm start already")
        return out
    policy = load_policy(run.model, device)
    episodes = Episodes(run, policy)
    episodes.require_window(tasks)
    rows, counts = _rows(_plays(tasks, run, sft, out), episodes.context, run, len(tasks), say)
    if not rows:
        raise ValueError(
            f"the {sft.expert} expert left nothing to imitate: it won {counts['won']} of {len(tasks)} games within "
            f"env.max_steps={run.env.max_steps}, and {counts['rows_too_long']} rows were longer than "
            f"{_longest(run)} tokens (rollout.max_prompt_tokens + rollout.max_response_tokens)"
        )
    settings = FitConfig(
        epochs=sft.epochs, lr=sft.lr, warmup_steps=sft.warmup_steps, batch_tokens=sft.batch_tokens, weight_decay=0.0,
        seed=run.seed,
    )  # fmt: skip
    state = FitState(out / "fit.pt", every=sft.checkpoint_every)
    losses = fit(policy.model, rows, settings, pad_id=policy.pad_id, say=say, state=state)
    policy.model.save_pretrained(out)
    policy.tokenizer.save_pretrained(out)
    facts = {
        "sft": asdict(sft), "games": len(tasks), **counts, "rows": len(rows),
        "tokens": sum(len(row.ids) for row in rows), "imitated_tokens": int(sum(sum(row.weights) for row in rows)),
        "losses": losses, "environment": provenance(policy.model),
    }  # fmt: skip
    (out / "sft.json").write_text(json.dumps(facts, indent=2) + "\n")
    state.remove()
    say(f"warm start written to {out}: continue with --model.path {out}")
    return out


def _open(out: Path, run: RunConfig, sft: SftConfig) -> None:
    """Make the folder, or check that what it holds is this warm start."""
    config, own = out / "config.yaml", out / "sft.yaml"
    if own.is_file() and config.is_file():
        earlier = from_tree(SftConfig, yaml.safe_load(own.read_text()))
        found = {**differences(load_config(config), run), **differences(earlier, sft, "sft.")}
        changed = {k: v for k, v in found.items() if k.startswith(_READ) and k not in _MAY_CHANGE}
        if changed:
            listed = ", ".join(f"{key} was {old!r} and is now {new!r}" for key, (old, new) in changed.items())
            raise ValueError(f"{out} holds another warm start: {listed}; choose another sft.out")
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no warm start; give it a folder of its own (sft.out)")
    out.mkdir(parents=True, exist_ok=True)
    config.write_text(dump_config(replace(run, run_dir=str(out))))
    own.write_text(yaml.safe_dump(to_tree(sft), sort_keys=False))


def _plays(tasks: Sequence[Task], run: RunConfig, sft: SftConfig, out: Path) -> Iterator[Play | None]:
    """The expert's episodes: first those on disk, then the others, which are put there."""
    log = PlayLog(out / "plays.jsonl", tasks)
    played = log.read()
    yield from played
    rest = tasks[len(played) :]
    fresh = iter_plays(
        rest, expert=sft.expert, noise=sft.noise, max_steps=run.env.max_steps, seed=run.seed, workers=run.env.workers
    )
    for play in fresh:
        log.append(play)
        yield play


def _rows(
    plays: Iterator[Play | None], context: ContextPolicy, run: RunConfig, games: int, say: Callable[[str], None]
) -> tuple[list[WeightedRow], dict[str, int]]:
    rows: list[WeightedRow] = []
    won, too_long = 0, 0
    for number, play in enumerate(plays, start=1):
        if play is not None:
            found, left_out = training_rows(play, trajectory_of(play, context), max_tokens=_longest(run))
            rows += found
            won, too_long = won + 1, too_long + left_out
        if number % 200 == 0 or number == games:
            say(f"games {number}/{games}  won {won}  rows {len(rows)}")
    return rows, {"won": won, "rows_too_long": too_long}


def _longest(run: RunConfig) -> int:
    return run.rollout.max_prompt_tokens + run.rollout.max_response_tokens
