"""`stepopsd games stats`: two sets of games side by side, measured on the real engine."""

from __future__ import annotations

import numpy as np
import pytest

from tests.extras import missing

pytest.importorskip("textworld", reason=missing("textworld"))
pytest.importorskip("alfworld", reason=missing("alfworld"))

from stepopsd.envs.alfworld import AlfworldEnv, walkthrough
from stepopsd.envs.games.generator import iter_games
from stepopsd.envs.games.make import write_task
from stepopsd.envs.games.stats import _compared, compare_games, game_figures
from stepopsd.envs.games.verify import play_expert


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for name, seed in (("a", 0), ("b", 1)):
        for game in iter_games(seed, 6):
            write_task(game, root / name / "train")
    return root


def test_figures_of_a_game_are_what_the_engine_says(tmp_path):
    game = next(iter_games(0, 1))
    task, env = write_task(game, tmp_path), AlfworldEnv()
    first = env.reset(task, 0)
    figures = game_figures(env, task)
    assert figures.first_words == len(first.text.split())
    assert figures.admissible[0] == len(first.admissible)
    assert len(figures.words) == len(figures.admissible) == figures.expert_steps == play_expert(env, task)
    assert figures.walkthrough_steps == len(walkthrough(task.source))
    assert figures.receptacles == sum(action.startswith("go to") for action in first.admissible)


def test_a_set_is_at_no_distance_from_itself(sets):
    rows = compare_games(sets / "a", sets / "a", per_type=1, workers=0, say=lambda line: None)
    assert {row.distance for row in rows} == {0.0}


def test_table_names_both_sets_and_every_type(sets):
    lines: list[str] = []
    rows = compare_games(sets / "a", sets / "b", per_type=1, workers=0, say=lines.append)
    assert "6 games, 6 won by the expert" in lines[0]
    names = [row.name for row in rows]
    assert names.count("  pick_two_obj_and_place") == 4
    assert {"words of the first observation", "admissible actions per step", "expert steps"} <= set(names)
    assert len(lines) == len(rows) + 4


def test_distance_is_the_largest_gap_of_the_distribution_functions():
    assert _compared("x", [1, 2, 3, 4], [3, 4, 5, 6]).distance == 0.5
    assert _compared("x", [1, 1], [2]).distance == 1.0
    assert np.array_equal(_compared("x", [2, 1], [1]).first, [1, 2])


def test_bad_arguments_are_named(sets):
    with pytest.raises(ValueError, match="per_type must be at least 1, got 0"):
        compare_games(sets / "a", sets / "b", per_type=0)
    with pytest.raises(FileNotFoundError, match="split 'seen' not found"):
        compare_games(sets / "a", sets / "b", second_split="seen")
