"""Before a study's first cell: games or questions, retriever and model of every environment are there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stepopsd.experiments.study.plan import Cell
from stepopsd.train.config import EnvConfig, RunConfig


def require_inputs(cells: Iterable[Cell]) -> None:
    """Check what the cells are going to read, each thing once: a mistake is told once and not by every cell.

    Args:
        cells: Those that will be trained.

    Raises:
        FileNotFoundError, ValueError: What ``tasks_of`` and ``search_retriever`` raise, or a model that is neither a
            folder nor known to the hub; environment and method are named.
        ImportError: What an environment needs is not installed.

    Example:
        >>> require_inputs(study.cells)                            # doctest: +SKIP
    """
    checked: set[str] = set()
    for cell in cells:
        reads = {repr(cell.config.env): _require_tasks, f"model {cell.config.model.path}": _require_model}
        for key, check in reads.items():
            if key in checked:
                continue
            checked.add(key)
            try:
                check(cell.config)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"{cell.environment}, {cell.method}: {error}") from error


def _require_tasks(config: RunConfig) -> None:
    from stepopsd.train.episodes import tasks_of
    from stepopsd.train.search import search_retriever

    for split in dict.fromkeys((config.env.train_split, *config.env.eval_splits)):
        tasks_of(config.env, split)
    if not _is_on_disk(config.env):
        search_retriever(config.env)


def _is_on_disk(env: EnvConfig) -> bool:
    """An index is opened by the cells alone: a dense one fills the memory."""
    return Path(env.search.retriever).expanduser().is_dir()


def _require_model(config: RunConfig) -> None:
    from transformers import AutoConfig

    path = config.model.path
    if not path:
        raise ValueError("model.path must name a model directory or hub model, got an empty string")
    try:
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"model.path: no model in {path} ({reason})") from error
