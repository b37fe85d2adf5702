"""The Search-QA demo's starting policy: careless demonstrations on other worlds -> supervised training -> a model.

    python -m stepopsd.experiments.search_warmstart --out models/search

It has read about the bundled world's names and learned nothing about them: every world it trains on has other facts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from stepopsd.envs.searchqa.env import LAST_TURN, NO_ACTION, NO_RESULT
from stepopsd.envs.searchqa.world import LEVELS, WorldConfig, bundled_passages, bundled_questions, make_world
from stepopsd.envs.searchqa.world.make import WORLD_SETS
from stepopsd.envs.searchqa.world.relations import RELATIONS, VALUES
from stepopsd.experiments.lessons import add_training_options, chosen_model, teach, training_row
from stepopsd.experiments.search_demonstrations import (
    SearchDemonstrationConfig,
    iter_search_demonstrations,
    shared_words,
)
from stepopsd.experiments.sft import FitConfig, WeightedRow
from stepopsd.experiments.tiny_model import TinyModelConfig, build_tokenizer, vocabulary
from stepopsd.text.chat import ChatFormat
from stepopsd.text.hindsight import number_actions, render_hindsight

#: A warm start that ships with the package; its README says how it was made and what it solves.
BUNDLED_SEARCH_MODEL = Path(__file__).with_name("search_model")


@dataclass(frozen=True, slots=True)
class SearchWarmStartConfig:
    """Everything the starting policy depends on.

    Attributes:
        schooling: Worlds where a name finds everything, long passages: where repeating names is learned.
        demonstrations: Worlds like the demo's, one fact a passage; learned last.
        school_fit: How the former are learned; no ``worlds`` there leaves them out.
        observation_weight: Loss weight of what the environment says, relative to imitated actions.
        seed: Seeds worlds, carelessness, parameters and row order.
        threads: Threads of the training; 0 leaves torch's own number.
        device: Where the training runs, as torch names it.
    """

    model: TinyModelConfig = field(default_factory=TinyModelConfig)
    schooling: SearchDemonstrationConfig = field(default_factory=lambda: SearchDemonstrationConfig(
        worlds=100, persons=80, level="easy", questions=250, hasty=0.4, bare=1.0))  # fmt: skip
    demonstrations: SearchDemonstrationConfig = field(default_factory=SearchDemonstrationConfig)
    school_fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=3))
    fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=1, warmup_steps=20, batch_tokens=1024))
    observation_weight: float = 0.1
    seed: int = 0
    threads: int = 0
    device: str = "cpu"


def search_warm_start(
    out: str | Path, config: SearchWarmStartConfig | None = None, *, say: Callable[[str], None] = print
) -> Path:
    """Make the starting policy and save it with its tokenizer.

    Args:
        out: Folder to write; what ``from_pretrained`` reads.
        say: Receives progress lines.

    Returns:
        The folder.

    Example:
        >>> search_warm_start("models/search", SearchWarmStartConfig(seed=1))     # doctest: +SKIP
    """
    config = config or SearchWarmStartConfig()
    tokenizer = search_tokenizer()
    lessons = _lessons(config, ChatFormat(tokenizer), say)
    return teach(
        out, tokenizer, lessons, model=config.model, seed=config.seed, threads=config.threads, device=config.device,
        say=say,
    )  # fmt: skip


def _lessons(
    config: SearchWarmStartConfig, chat: ChatFormat, say: Callable[[str], None]
) -> Iterator[tuple[list[WeightedRow], FitConfig]]:
    parts = ((config.schooling, config.school_fit), (config.demonstrations, config.fit))
    for number, (demonstrations, options) in enumerate(parts):
        # A seed of its own: no world is met twice.
        made = replace(demonstrations, seed=2 * config.seed + number)
        rows = [
            training_row(chat, d, observation_weight=config.observation_weight, form="{}")
            for world in iter_search_demonstrations(made)
            for d in world
        ]
        say(f"{demonstrations.level}: {len(rows)} rows, {sum(len(row.ids) for row in rows):,} tokens")
        yield rows, replace(options, seed=config.seed)


def search_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-case tokenizer that knows every word of the bundled world and of all worlds made of its names."""
    questions = [q for split in ("train", *WORLD_SETS) for q in bundled_questions(split)]
    texts = [f"{p.title} {p.text}" for p in bundled_passages()]
    texts += [" ".join([q.question, *q.golden_answers]) for q in questions]
    for level in LEVELS:
        world = make_world(WorldConfig(100, level, 1, 1), words=shared_words())
        texts += [f"{p.title} {p.text}" for p in world.passages]
    for relation in RELATIONS.values():
        texts += [wording.format(s="", o="") for wording in (*relation.tells, *relation.asks, relation.noun)]
    texts += [" ".join(words) for words in VALUES.values()]
    texts += [" ".join(map(str, range(1850, 2000))), " ".join("abcdefghijklmnopqrstuvwxyz")]
    texts += [number_actions(["<search> </search> <answer> </answer> [1] [2] [3] : ?"] * 10), _FRAME]
    texts += [LAST_TURN, NO_ACTION, NO_RESULT, *(render_hindsight(success, "") for success in (True, False))]
    return build_tokenizer(vocabulary(text.lower() for text in texts), lowercase=True)


_FRAME = "question : <information> </information> What was found is too long to show. look go yes no"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    defaults = SearchWarmStartConfig()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write the model and its tokenizer to")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    add_training_options(parser, defaults.model, lr=defaults.fit.lr, threads=defaults.threads)
    chosen = parser.parse_args(argv)
    config = replace(
        defaults,
        model=chosen_model(defaults.model, chosen),
        school_fit=replace(defaults.school_fit, lr=chosen.lr),
        fit=replace(defaults.fit, lr=chosen.lr),
        seed=chosen.seed,
        threads=chosen.threads,
        device=chosen.device,
    )
    search_warm_start(chosen.out, config)


if __name__ == "__main__":
    main()
