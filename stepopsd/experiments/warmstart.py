"""The demo's starting policy: expert demonstrations on generated games -> supervised training -> a model folder.

    python -m stepopsd.experiments.warmstart --out models/tiny

It learns from games of the training layouts only, and none of them has the content of a bundled game.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from stepopsd.envs.games.goals import WORDINGS
from stepopsd.envs.games.rooms import FULL_RECEPTACLES, LAMP, PLACES, TINY_RECEPTACLES
from stepopsd.experiments.demonstrations import Demonstration, DemonstrationConfig, iter_demonstrations
from stepopsd.experiments.sft import FitConfig, WeightedRow, fit
from stepopsd.experiments.tiny_model import END, TinyModelConfig, build_model, build_tokenizer, save, vocabulary
from stepopsd.text.chat import ChatFormat
from stepopsd.text.hindsight import number_actions, render_hindsight

#: A warm start that ships with the package; its README says how it was made and what it solves.
BUNDLED_MODEL = Path(__file__).with_name("demo_model")


@dataclass(frozen=True, slots=True)
class WarmStartConfig:
    """Everything the starting policy depends on.

    Attributes:
        fit, refit: How the rows are learned, and learned once more with a learning rate that rises again; no epochs
            leave it out.
        observation_weight: Loss weight of what the environment says, relative to imitated actions. Without it the
            model does not learn which names belong together, and solves nothing.
        seed: Seeds games, noise, parameters and row order.
        workers: Processes that play the demonstrations; changes the speed, not the result.
        threads: Threads of the training; 0 leaves torch's own number.
        device: Where the training runs, as torch names it.
    """

    # Drawn otherwise, a model of this width never reads its hindsight.
    model: TinyModelConfig = field(default_factory=lambda: TinyModelConfig(width=64, layers=3, mlp=192, fan_in=True))
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=1.0, lr=3e-3))
    refit: FitConfig = field(default_factory=lambda: FitConfig(epochs=1.5, lr=3e-3))
    observation_weight: float = 0.3
    seed: int = 0
    workers: int = 2
    threads: int = 2
    device: str = "cpu"


def warm_start(
    out: str | Path, config: WarmStartConfig | None = None, *, say: Callable[[str], None] = print
) -> Path:
    """Make the starting policy and save it with its tokenizer.

    Args:
        out: Folder to write; what ``from_pretrained`` reads.
        say: Receives progress lines.

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: alfworld or textworld is not installed.

    Example:
        >>> warm_start("models/tiny", WarmStartConfig(seed=1))     # doctest: +SKIP
    """
    config = config or WarmStartConfig()
    demonstrations = collect(replace(config.demonstrations, seed=config.seed), workers=config.workers, say=say)
    tokenizer = demo_tokenizer(demonstrations)
    chat = ChatFormat(tokenizer)
    rows = [training_row(chat, d, observation_weight=config.observation_weight) for d in demonstrations]
    say(f"{len(rows)} rows, {sum(len(row.ids) for row in rows):,} tokens")
    lessons = [(rows, replace(options, seed=config.seed)) for options in (config.fit, config.refit) if options.epochs]
    return teach(
        out, tokenizer, lessons, model=config.model, seed=config.seed, threads=config.threads, device=config.device,
        say=say,
    )  # fmt: skip


def teach(
    out: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    lessons: Iterable[tuple[Sequence[WeightedRow], FitConfig]],
    *,
    model: TinyModelConfig,
    seed: int,
    threads: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> Path:
    """Draw a tiny model, teach it one lesson after the other and save it in bfloat16, with its tokenizer.

    Args:
        out: Folder to write; what ``from_pretrained`` reads.
        lessons: Rows, and how they are learned; one without rows is passed over.
        model: Size of the model.
        seed: Seeds its parameters.
        threads: Threads of the training; 0 leaves torch's own number.
        device: Where it learns; the parameters are drawn on the CPU.
        say: Receives progress lines.

    Returns:
        The folder.
    """
    policy = build_model(tokenizer, model, seed=seed)
    torch.nn.Module.to(policy, device)
    say(f"{sum(p.numel() for p in policy.parameters()):,} parameters, {len(tokenizer)} words")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for rows, options in lessons:
            if rows:
                fit(policy, rows, options, pad_id=tokenizer.pad_token_id, say=say)
    finally:
        torch.set_num_threads(before)
    torch.nn.Module.to(policy, "cpu", torch.bfloat16)
    save(policy, tokenizer, out)
    return Path(out)


def collect(
    config: DemonstrationConfig, *, workers: int, say: Callable[[str], None] = print
) -> list[Demonstration]:
    """All demonstrations, with a progress line per 500 games."""
    start = time.monotonic()
    found: list[Demonstration] = []
    for number, demonstrations in enumerate(iter_demonstrations(config, workers=workers), start=1):
        found += demonstrations
        if number % 500 == 0 or number == config.games:
            say(f"games {number}/{config.games}  demonstrations {len(found)}  {time.monotonic() - start:.0f} s")
    return found


def training_row(
    chat: ChatFormat, demonstration: Demonstration, *, observation_weight: float, form: str = "<action>{}</action>"
) -> WeightedRow:
    """A demonstration as the ids that a dialogue rollout would hold, with the loss weight of each.

    Imitated actions, with the id that ends the turn, weigh 1; the environment's words ``observation_weight``;
    actions that are not imitated and the hindsight block 0.
    """
    tokenizer = chat.tokenizer
    ids: list[int] = []
    weights: list[float] = []

    def add(new: list[int], weight: float) -> None:
        ids.extend(new)
        weights.extend([weight] * len(new))

    hint = tokenizer(demonstration.hint, add_special_tokens=False)["input_ids"]
    response: list[int] = []
    for turn, message in enumerate(demonstration.messages):
        add(chat.followup(message, response) if turn else chat.opening(message), observation_weight)
        if turn == demonstration.hint_turn:
            add(hint, 0.0)
        action = form.format(demonstration.actions[turn])
        response = tokenizer(f"{action}{END}", add_special_tokens=False)["input_ids"]
        add(response, float(demonstration.imitated[turn]))
    if demonstration.hint_turn < 0:  # where a teacher with prefix placement puts it: before the user's first words
        ids[1:1] = hint
        weights[1:1] = [0.0] * len(hint)
    return WeightedRow(ids, weights)


def demo_tokenizer(demonstrations: Sequence[Demonstration]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the demonstrations, all that tiny games can name, and the hindsight block."""
    return build_tokenizer(vocabulary([*_known_texts(), *_spoken(demonstrations)]))


def _spoken(demonstrations: Iterable[Demonstration]) -> Iterable[str]:
    for demonstration in demonstrations:
        yield from demonstration.messages
        yield from demonstration.actions


def _known_texts() -> list[str]:
    """What may be said whether or not a demonstration happened to say it."""
    names = [kind for room in (PLACES, TINY_RECEPTACLES, FULL_RECEPTACLES) for table in room.values() for kind in table]
    goals = [wording for wordings in WORDINGS.values() for wording in wordings]
    return [
        " ".join([*names, LAMP]).lower(),
        " ".join(goals).format(obj="", recep=""),
        number_actions(["<action>look</action>"] * 50),
        *(render_hindsight(success, "") for success in (True, False)),
        "<think></think> Nothing happens. inventory examine close open use help",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    defaults = WarmStartConfig()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write the model and its tokenizer to")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--games", type=int, default=defaults.demonstrations.games)
    parser.add_argument("--workers", type=int, default=defaults.workers)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--device", default=defaults.device)
    parser.add_argument("--lr", type=float, default=defaults.fit.lr)
    parser.add_argument("--epochs", type=float, default=defaults.fit.epochs, help="first passes over the games played")
    parser.add_argument("--refit-epochs", type=float, default=defaults.refit.epochs, help="passes after them; 0: none")
    for size in ("width", "layers", "heads", "mlp"):
        parser.add_argument(f"--{size}", type=int, default=getattr(defaults.model, size))
    chosen = parser.parse_args(argv)
    config = WarmStartConfig(
        model=replace(
            defaults.model, width=chosen.width, layers=chosen.layers, heads=chosen.heads, mlp=chosen.mlp
        ),
        fit=replace(defaults.fit, lr=chosen.lr, epochs=chosen.epochs),
        refit=replace(defaults.refit, lr=chosen.lr, epochs=chosen.refit_epochs),
        demonstrations=DemonstrationConfig(games=chosen.games),
        seed=chosen.seed,
        workers=chosen.workers,
        threads=chosen.threads,
        device=chosen.device,
    )
    warm_start(chosen.out, config)


if __name__ == "__main__":
    main()
