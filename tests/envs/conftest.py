"""Generated games for the engine tests, written once per test session."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepopsd.envs.base import Task


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    """One small game of each task type."""
    return _write(tmp_path_factory.mktemp("tiny"), "tiny", 6)


@pytest.fixture(scope="session")
def full_task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """One game with as many rooms and objects as the official ones."""
    return _write(tmp_path_factory.mktemp("full"), "full", 1)[0]


def _write(folder: Path, size: str, count: int) -> list[Task]:
    from stepopsd.envs.games.generator import iter_games
    from stepopsd.envs.games.make import write_task

    return [write_task(game, folder) for game in iter_games(3, count, size=size)]
