"""Goal wordings: what we write can be read back, and so can the official sentences."""

from __future__ import annotations

import pytest

from stepopsd.envs.games.generator import iter_games
from stepopsd.envs.games.goals import TASK_TYPES, WORDINGS, Goal, goal_text, parse_goal


def test_every_drawn_goal_is_read_back():
    for game in iter_games(0, 600, size="full"):
        for wording in range(len(WORDINGS[game.task_type])):
            text = goal_text(game.task_type, game.obj, game.target, wording)
            assert parse_goal(text) == Goal(game.task_type, game.obj.lower(), game.target.lower())


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_every_type_has_two_different_wordings(task_type):
    assert len({goal_text(task_type, "Mug", "Shelf", wording) for wording in range(4)}) == 2


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_official_templates_are_read(task_type):
    library = pytest.importorskip("alfworld.gen.goal_library")
    looking = task_type == "look_at_obj_in_light"
    for template in library.gdict[task_type]["templates"]:
        for recep in ("fridge", "microwave", "sinkbasin", "toiletpaperhanger"):
            text = template.format(obj="saltshaker", recep=recep, toggle="desklamp", mrecep="")
            goal = parse_goal(f"Your task is to: {text}.")
            assert goal == Goal(task_type, "saltshaker", "desklamp" if looking else recep)


@pytest.mark.parametrize("text", ["do something nice", "put a unicorn in fridge", "put a mug in castle", ""])
def test_unreadable_goal_is_an_error_that_quotes_it(text):
    with pytest.raises(ValueError, match=rf"goal must name a known .*got '{text}'"):
        parse_goal(text)
