"""Goal wordings: what we write can be read back, and so can the official sentences."""

from __future__ import annotations

import pytest

from stepopsd.envs.games.generator import iter_games
from stepopsd.envs.games.goals import PARAPHRASES, TASK_TYPES, WORDINGS, Goal, goal_text, parse_goal, wordings
from tests.extras import missing


def test_every_drawn_goal_is_read_back():
    for game in iter_games(0, 600, size="full"):
        for wording in range(wordings(game.task_type, "full")):
            for sliced in (False, True):
                text = goal_text(game.task_type, game.obj, game.target, wording, sliced=sliced)
                assert parse_goal(text) == Goal(game.task_type, game.obj.lower(), game.target.lower(), sliced)


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_tiny_games_keep_to_two_wordings_and_full_ones_use_all(task_type):
    said = {
        size: {goal_text(task_type, "Mug", "Shelf", wording) for wording in range(wordings(task_type, size))}
        for size in ("tiny", "full")
    }
    assert len(said["tiny"]) == len(WORDINGS[task_type]) == 2
    assert len(said["full"]) == 2 + len(PARAPHRASES[task_type]) == 6
    drawn = {game.goal for game in iter_games(0, 240) if game.task_type == task_type}
    assert drawn <= {
        goal_text(task_type, g.obj, g.target, w) for g in iter_games(0, 240) for w in range(2)
    }


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize("suffix", ["", "_slice"])
def test_official_templates_are_read(task_type, suffix):
    library = pytest.importorskip("alfworld.gen.goal_library", reason=missing("alfworld"))
    looking = task_type == "look_at_obj_in_light"
    for template in library.gdict[task_type + suffix]["templates"]:
        for recep in ("fridge", "microwave", "sinkbasin", "toiletpaperhanger"):
            text = template.format(obj="saltshaker", recep=recep, toggle="desklamp", mrecep="")
            goal = parse_goal(f"Your task is to: {text}.")
            assert goal == Goal(task_type, "saltshaker", "desklamp" if looking else recep, bool(suffix))


@pytest.mark.parametrize("text", ["do something nice", "put a unicorn in fridge", "put a mug in castle", ""])
def test_unreadable_goal_is_an_error_that_quotes_it(text):
    with pytest.raises(ValueError, match=rf"goal must name a known .*got '{text}'"):
        parse_goal(text)
