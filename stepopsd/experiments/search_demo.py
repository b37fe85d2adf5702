"""The Search-QA half of the demo: a closed world of its own, made on the spot, and what the run needs to know of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stepopsd.envs.searchqa.world import WorldConfig, make_world, write_world
from stepopsd.experiments.search_demonstrations import shared_words
from stepopsd.train.config import RunConfig

SEARCH_PRESET = Path(__file__).with_name("presets") / "searchqa" / "demo.yaml"
#: One fact a passage: the wording of a query decides. Its facts are those of no demonstration's world.
DEMO_WORLD = WorldConfig(persons=100, level="medium", train=320, per_set=40, seed=0)


def demo_world(folder: Path) -> Path:
    """Write the demo's world, unless it is there; returns its folder."""
    if not (folder / "manifest.json").is_file():
        write_world(make_world(DEMO_WORLD, words=shared_words()), folder)
    return folder


def search_in(config: RunConfig, world: Path) -> RunConfig:
    """The same run on the questions and passages of a world's folder."""
    search = replace(config.env.search, data=str(world), retriever=str(world / "corpus.jsonl"))
    return replace(config, env=replace(config.env, search=search))
