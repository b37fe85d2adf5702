"""Drawing games: repeatable, balanced, never won before the first action, and apart from each other."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from stepopsd.envs.games.generator import Difficulty, iter_games
from stepopsd.envs.games.goals import TASK_TYPES
from stepopsd.envs.games.layout import SIZES, split_scenes
from stepopsd.envs.games.rooms import APPLIANCE, can_contain

FACT = re.compile(r"\((\w+) ([^\s?]+) ([^\s?]+)\)")


def facts(problem: str, name: str) -> dict[str, str]:
    return {first: second for fact, first, second in FACT.findall(problem) if fact == name}


@pytest.mark.parametrize("size", SIZES)
def test_same_arguments_give_the_same_games_and_a_longer_run_starts_with_a_shorter(size):
    short, long = list(iter_games(3, 6, size=size)), list(iter_games(3, 12, size=size))
    assert long[:6] == short


def test_games_do_not_depend_on_the_order_of_sets():
    program = (
        "from stepopsd.envs.games.generator import Difficulty, iter_games\n"
        "print([game.content_key for size in ('tiny', 'full') for game in iter_games(5, 12, size=size)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_seeds_and_splits_draw_different_games():
    draws = [
        {game.content_key for game in iter_games(seed, 60, split=split)}
        for seed, split in ((0, "train"), (1, "train"), (0, "seen"))
    ]
    assert all(first.isdisjoint(second) for first, second in pairwise(draws))


def test_task_types_come_in_turn():
    assert [game.task_type for game in iter_games(0, 12)] == list(TASK_TYPES) * 2


def test_each_split_keeps_to_its_scenes():
    for split in ("train", "seen", "unseen"):
        assert {game.scene for game in iter_games(0, 120, split=split)} <= set(split_scenes(split))


def test_excluded_content_does_not_come_up_again():
    first = {game.content_key for game in iter_games(0, 30)}
    again = {game.content_key for game in iter_games(0, 30, exclude=first)}
    assert len(again) == 30
    assert first.isdisjoint(again)


def test_content_key_ignores_trial_name_only():
    game, other = iter_games(0, 2)
    renamed = type(game)(**{f: getattr(game, f) for f in game.__slots__} | {"problem": _renamed(game.problem)})
    assert renamed.content_key == game.content_key
    assert other.content_key != game.content_key


def _renamed(problem: str) -> str:
    return re.sub(r"\(problem \S+\)", "(problem other)", problem, count=1)


@pytest.mark.parametrize("size", SIZES)
def test_wanted_objects_start_away_from_their_target_and_are_enough(size):
    for game in iter_games(1, 120, size=size):
        kinds, where = facts(game.problem, "objectType"), facts(game.problem, "inReceptacle")
        receptacles = facts(game.problem, "receptacleType")
        wanted = [thing for thing, kind in kinds.items() if kind == f"{game.obj}Type"]
        assert len(wanted) >= (2 if game.task_type == "pick_two_obj_and_place" else 1)
        # What has to be cleaned, heated or cooled may lie at its target before, as in the official games.
        if size == "tiny" or game.task_type in ("pick_and_place_simple", "pick_two_obj_and_place"):
            assert all(receptacles[where[thing]] != f"{game.target}Type" for thing in wanted)


def test_goals_ask_only_for_what_the_rules_allow():
    for game in iter_games(2, 240):
        if game.task_type == "look_at_obj_in_light":
            assert game.target == "DeskLamp"
            continue
        assert (game.target, game.obj) in can_contain()
        assert game.target != APPLIANCE.get(game.task_type)


def test_tiny_games_have_few_things_and_full_games_many():
    def things(size: str) -> float:
        games = list(iter_games(0, 60, size=size))
        return sum(len(facts(game.problem, "objectType")) for game in games) / 60

    assert things("tiny") < 10 < 20 < things("full")


def test_instances_are_limited_to_four_in_reach():
    for game in iter_games(0, 60, size="full"):
        kinds, placed = facts(game.problem, "objectType"), facts(game.problem, "inReceptacle")
        assert max(Counter(kinds[thing] for thing in placed).values()) <= 4


def test_distance_counts_likelier_places_and_is_kept():
    near, far = (
        list(iter_games(0, 24, size="full", difficulty=Difficulty(distance=span))) for span in ((0, 1), (4, 30))
    )
    assert sum(len(game.walkthrough) for game in near) <= sum(len(game.walkthrough) for game in far)
    assert {game.content_key for game in near}.isdisjoint(game.content_key for game in far)


def test_receptacles_are_kept_in_range():
    for game in iter_games(0, 60, size="full", difficulty=Difficulty(receptacles=(10, 14))):
        assert 10 <= len(facts(game.problem, "receptacleAtLocation")) <= 14


def test_sliced_games_name_it_need_it_and_start_whole():
    games = list(iter_games(0, 120, size="full", difficulty=Difficulty(sliced=1.0)))
    sliced = [game for game in games if game.sliced]
    assert len(sliced) >= 10
    for game in sliced:
        assert "sliced" in game.goal
        assert "(isSliced ?o" in game.problem.partition("(:goal")[2]
        assert "isSliced" not in game.problem.partition("(:goal")[0]
        assert any(command.startswith("slice ") for command in game.walkthrough)
    assert not any(game.sliced for game in iter_games(0, 120, size="full"))


def test_difficulty_that_no_draw_meets_is_an_error():
    with pytest.raises(ValueError, match=r"distance \(90, 99\): none of \d+ draws"):
        next(iter_games(0, 1, difficulty=Difficulty(distance=(90, 99))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"receptacles": (9, 3)}, "receptacles must be two numbers, fewest and most, got 9 3"),
        ({"distance": (-1, 3)}, "distance must be two numbers, fewest and most, got -1 3"),
        ({"sliced": 1.5}, "sliced must lie in [0, 1], got 1.5"),
    ],
)
def test_bad_difficulty_is_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Difficulty(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"count": 1, "size": "huge"}, "size must be one of tiny, full, got 'huge'"),
        ({"count": 1, "scenes": [401]}, "scenes must include a room for look_at_obj_in_light"),
        ({"count": 1, "scenes": [55]}, "scene must lie in"),
        ({"count": 1, "difficulty": Difficulty(sliced=0.5)}, "sliced needs size full, got 'tiny'"),
        ({"count": 1, "difficulty": Difficulty(receptacles=(2, 3))}, "within receptacles (2, 3)"),
        ({"count": 1, "split": "dev"}, "split must be one of train, seen, unseen, got 'dev'"),
    ],
)
def test_bad_arguments_are_named_at_the_call(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        iter_games(0, **arguments)
