"""A study file, and the cells that it spells out: one training run per environment, method and seed."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stepopsd.experiments.preset import preset_names, preset_path
from stepopsd.experiments.search_warmstart import BUNDLED_SEARCH_MODEL
from stepopsd.experiments.warmstart import BUNDLED_MODEL
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree, to_tree
from stepopsd.train.config_layers import merge, read_layers

STUDIES = Path(__file__).parents[1] / "studies"
BUNDLED = "bundled"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run of a study.

    Attributes:
        environment, method: Names in the study file.
        seed: Training seed.
        config: The run, without its directory.
    """

    environment: str
    method: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """``environment/method/seed-0``: the cell's folder in a study's directory."""
        return f"{self.environment}/{self.method}/seed-{self.seed}"

    def config_in(self, root: Path) -> RunConfig:
        """The run as it is trained in the study's directory."""
        return dataclasses.replace(self.config, run_dir=str(root / "cells" / self.name))


@dataclass(frozen=True, slots=True)
class Study:
    """What a study compares.

    Attributes:
        title: Heading of its table.
        environments: Names, in the file's order.
        methods: Names, in the file's order.
        baseline: The method that all others are compared with.
        seeds: Training seeds of every method.
        generated_tokens: Every run ends with the update in which it has sampled so many tokens; 0 ends all runs after
            equal numbers of updates.
        cells: Seeds outermost, so that a study that is stopped early holds whole seeds.
        source: The file's text.
    """

    title: str
    environments: tuple[str, ...]
    methods: tuple[str, ...]
    baseline: str
    seeds: tuple[int, ...]
    generated_tokens: int
    cells: tuple[Cell, ...]
    source: str


def study_path(name: str) -> Path:
    """The file of a study: a path, or the name of one that comes with the package (``cpu``).

    Raises:
        FileNotFoundError: Neither.
    """
    file = Path(name)
    if file.is_file():
        return file
    shipped = STUDIES / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.yaml")))
    raise FileNotFoundError(f"study: no such file: {name}; studies that come with the package: {known}")


def read_study(file: Path) -> Study:
    """Read and check a study file; every cell's configuration is resolved, nothing is trained.

    ::

        title: GRPO and StepOPSD on ALFWorld
        baseline: grpo
        seeds: [0, 1, 2]
        generated_tokens: 300_000        # 0: equal updates
        environments:
          alfworld: {preset: demo, set: {eval: {samples: 4}}}
        methods:
          grpo: {}
          stepopsd: {credit: {name: stepopsd}}
        only:                            # optional: the environments of a method that does not run on all
          stepopsd: [alfworld]

    Args:
        file: The YAML file. A ``preset`` is the name of one or a file, relative to the study's folder; ``set`` and a
            method's entry are parts of a run's configuration that go over it. ``model.path: bundled`` is the warm
            start of the environment's demo.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A missing or unknown key, a name that is no folder's name, or a configuration that does not hold;
            the message names the environment and the method.
    """
    source = file.read_text(encoding="utf-8")
    tree = yaml.safe_load(source)
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: a study must be a mapping, got {type(tree).__name__}")
    _check_keys(file, tree)
    environments = {name: _environment(file, name, entry) for name, entry in tree["environments"].items()}
    methods, seeds = tree["methods"], tree["seeds"]
    for name in (*environments, *methods):
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"{file}: names must be letters, digits, '.', '_', '+' or '-', got {name!r}")
    if len(set(seeds)) != len(seeds) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"{file}: seeds must be different whole numbers, got {seeds!r}")
    if tree["baseline"] not in methods:
        raise ValueError(f"{file}: baseline must be one of {', '.join(methods)}, got {tree['baseline']!r}")
    only = _only(file, tree.get("only") or {}, environments, methods)
    tokens = int(tree.get("generated_tokens") or 0)
    return Study(
        title=str(tree.get("title", file.stem)), environments=tuple(environments), methods=tuple(methods),
        baseline=tree["baseline"], seeds=tuple(seeds), generated_tokens=tokens,
        cells=tuple(_cells(file, environments, methods, only, seeds, tokens)), source=source,
    )  # fmt: skip


_REQUIRED = ("baseline", "seeds", "environments", "methods")
_OPTIONAL = ("title", "generated_tokens", "only")


def _check_keys(file: Path, tree: Mapping[str, Any]) -> None:
    for key in tree:
        if key not in (*_REQUIRED, *_OPTIONAL):
            close = difflib.get_close_matches(str(key), (*_REQUIRED, *_OPTIONAL), n=1)
            raise ValueError(f"{file}: unknown key {key}" + (f"; did you mean {close[0]}?" if close else ""))
    for key in _REQUIRED:
        if not tree.get(key):
            raise ValueError(f"{file}: a study needs {key}")
    for key in ("environments", "methods"):
        if not isinstance(tree[key], dict):
            raise ValueError(f"{file}: {key} must be a mapping from names, got {tree[key]!r}")


def _environment(file: Path, name: str, entry: Any) -> dict[str, Any]:
    """The configuration tree that all cells of an environment start from."""
    if not isinstance(entry, dict) or not set(entry) <= {"preset", "set"} or "preset" not in entry:
        raise ValueError(f"{file}: environments.{name} must have a preset and may have set, got {entry!r}")
    preset = str(entry["preset"])
    path = preset_path(preset) if preset in preset_names() else file.parent / preset
    tree = to_tree(read_layers([path]).config)
    merge(tree, entry.get("set") or {})
    if tree["model"]["path"] == BUNDLED:
        tree["model"]["path"] = str(BUNDLED_SEARCH_MODEL if tree["env"]["name"] == "searchqa" else BUNDLED_MODEL)
    return tree


def _only(
    file: Path, only: Mapping[str, Any], environments: Mapping[str, Any], methods: Mapping[str, Any]
) -> Mapping[str, Any]:
    for method, names in only.items():
        if method not in methods or not isinstance(names, list) or not set(names) <= set(environments):
            raise ValueError(f"{file}: only must list environments of a method, got {method}: {names!r}")
    return only


def _cells(
    file: Path, environments: Mapping[str, dict[str, Any]], methods: Mapping[str, Any], only: Mapping[str, Any],
    seeds: list[int], tokens: int,
) -> Iterator[Cell]:  # fmt: skip
    for seed in seeds:
        for environment, start in environments.items():
            for method, changes in methods.items():
                if environment in only.get(method, environments):
                    config = _resolve(file, environment, method, start, changes, seed, tokens)
                    yield Cell(environment, method, seed, config)


def _resolve(
    file: Path, environment: str, method: str, start: dict[str, Any], changes: Any, seed: int, tokens: int
) -> RunConfig:
    tree: dict[str, Any] = {}
    merge(tree, start)
    try:
        merge(tree, changes or {})
        merge(tree, {"seed": seed, "resume": True, **({"optim": {"generated_tokens": tokens}} if tokens else {})})
        return from_tree(RunConfig, tree)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: {environment}, {method}: {error}") from error
