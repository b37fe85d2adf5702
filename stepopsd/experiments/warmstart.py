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

from transformers import PreTrainedTokenizerFast

from stepopsd.envs.games.goals import WORDINGS
from stepopsd.envs.games.rooms import FULL_RECEPTACLES, LAMP, PLACES, TINY_RECEPTACLES
from stepopsd.experiments.demonstrations import DemonstrationConfig, iter_demonstrations
from stepopsd.experiments.lessons import Demonstration, add_training_options, chosen_model, teach, training_row
from stepopsd.experiments.sft import FitConfig
from stepopsd.experiments.tiny_model import TinyModelConfig, build_tokenizer, vocabulary
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
    parser.add_argument("--epochs", type=float, default=defaults.fit.epochs, help="first passes over the games played")
    parser.add_argument("--refit-epochs", type=float, default=defaults.refit.epochs, help="passes after them; 0: none")
    add_training_options(parser, defaults.model, lr=defaults.fit.lr, threads=defaults.threads)
    chosen = parser.parse_args(argv)
    config = WarmStartConfig(
        model=chosen_model(defaults.model, chosen),
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
