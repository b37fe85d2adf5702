"""The expert on many games through the real engine: minutes, run by `make test-slow`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.extras import missing

pytest.importorskip("textworld", reason=missing("textworld"))
pytest.importorskip("alfworld", reason=missing("alfworld"))

from stepopsd.envs.alfworld.official import OFFICIAL_COUNTS
from stepopsd.envs.games.check import check_games
from stepopsd.envs.games.generator import Difficulty, iter_games
from stepopsd.envs.games.goals import TASK_TYPES
from stepopsd.envs.games.make import write_task
from stepopsd.envs.games.verify import STEP_LIMIT, checker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
# Existence is checked, not the variable: importing alfworld anywhere points it at an empty cache folder.
OFFICIAL = Path(os.environ.get("ALFWORLD_DATA", "")) / "json_2.1.1"


def test_expert_and_walkthrough_win_every_generated_game(tmp_path):
    games = [
        *iter_games(17, 120, size="full"),
        *iter_games(17, 60, size="full", split="unseen", difficulty=Difficulty(sliced=0.5)),
        *iter_games(17, 60, size="tiny", split="unseen"),
    ]
    tasks = [write_task(game, tmp_path / f"{game.size}-{int(game.sliced)}") for game in games]
    with checker(workers=2, expert_limit=100) as check:
        verdicts = dict(zip((task.source for task in tasks), check(tasks), strict=True))
    assert len(verdicts) == 240
    assert [s for s, v in verdicts.items() if v.walkthrough_steps is None or v.expert_steps is None] == []
    # As drawn, before the generator puts aside what takes the expert more than 50 steps.
    assert sum(v.expert_steps <= STEP_LIMIT for v in verdicts.values()) >= 238


@pytest.mark.skipif(not (OFFICIAL / "valid_seen").is_dir(), reason="needs the official games")
def test_walkthrough_and_expert_win_all_official_seen_games():
    result = check_games(OFFICIAL, sample=-1, splits=("seen",))
    assert result.problems == []
    for by in ("walkthrough_steps", "expert_steps"):
        won = Counter(game.task.kind for game in result.played if getattr(game.verdict, by) is not None)
        assert won == {kind: OFFICIAL_COUNTS["seen"][kind] for kind in TASK_TYPES}
