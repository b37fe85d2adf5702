"""The hand-written expert: plays on what it was told, explores by plausibility, recovers, and wins."""

from __future__ import annotations

import os
import random
from itertools import islice
from pathlib import Path

import pytest

from stepopsd.envs.base import Observation
from stepopsd.envs.games.expert import HandExpert
from tests.extras import missing

INTRO = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see a"
    " cabinet 2, a cabinet 1, a countertop 1, a fridge 1, a microwave 1, a sinkbasin 1, and a stoveburner 1.\n\n"
    "Your task is to: bring a hot egg to the countertop."
)
PLACES = ("cabinet 1", "cabinet 2", "countertop 1", "fridge 1", "microwave 1", "sinkbasin 1", "stoveburner 1")


def going(*others: str) -> tuple[str, ...]:
    return (*(f"go to {place}" for place in PLACES), "look", "inventory", *others)


def told(expert: HandExpert, text: str, *others: str) -> str:
    return expert.act(Observation(text, going(*others)))


def test_it_looks_first_where_such_things_tend_to_lie():
    assert told(HandExpert("bring a hot egg to the countertop."), INTRO) == "go to countertop 1"
    assert told(HandExpert("move a pot to the cabinet."), INTRO) == "go to stoveburner 1"


def test_it_heats_before_it_delivers_and_opens_what_is_closed():
    expert = HandExpert("bring a hot egg to the countertop.")
    told(expert, INTRO)
    empty = "You arrive at countertop 1. On the countertop 1, you see nothing."
    assert told(expert, empty, "examine countertop 1") == "go to fridge 1"
    closed = "You arrive at fridge 1. The fridge 1 is closed."
    assert told(expert, closed, "examine fridge 1", "open fridge 1") == "open fridge 1"
    inside = "You open the fridge 1. The fridge 1 is open. In it, you see a apple 1, and a egg 2."
    here = ("examine fridge 1", "close fridge 1")
    assert told(expert, inside, *here, "take egg 2 from fridge 1") == "take egg 2 from fridge 1"
    taken = "You pick up the egg 2 from the fridge 1."
    assert told(expert, taken, *here, "cool egg 2 with fridge 1") == "go to microwave 1"
    closed = "You arrive at microwave 1. The microwave 1 is closed."
    heat = "heat egg 2 with microwave 1"
    assert told(expert, closed, "examine microwave 1", "open microwave 1", heat) == heat
    heated = "You heat the egg 2 using the microwave 1."
    assert told(expert, heated, "examine microwave 1", "open microwave 1", heat) == "go to countertop 1"
    arrived = "You arrive at countertop 1. On the countertop 1, you see nothing."
    move = "move egg 2 to countertop 1"
    assert told(expert, arrived, "examine countertop 1", move) == move


def test_it_puts_down_what_it_was_made_to_carry():
    expert = HandExpert("bring a hot egg to the countertop.")
    told(expert, INTRO)
    told(expert, "You arrive at cabinet 1. The cabinet 1 is closed.", "examine cabinet 1", "open cabinet 1")
    taken = "You pick up the plate 1 from the countertop 1."
    move = "move plate 1 to countertop 1"
    assert told(expert, taken, "examine countertop 1", move).startswith(("go to cabinet", "move plate 1"))


def test_receptacles_that_share_a_location_are_examined_where_one_stands():
    expert = HandExpert("move a pot to the cabinet.")
    beside = tuple(a for a in going("examine stoveburner 1", "examine countertop 1") if "stoveburner 1" not in a[:6])
    expert.act(Observation(INTRO, going()))
    text = "You arrive at countertop 1. On the countertop 1, you see nothing."
    assert expert.act(Observation(text, beside)) == "examine stoveburner 1"


def test_of_two_closed_targets_it_opens_one_instead_of_walking_between_them():
    expert = HandExpert("move two mug to the cabinet.")
    places = ("cabinet 1", "cabinet 2", "garbagecan 1")
    intro = INTRO.partition("a cabinet 2")[0] + "a cabinet 2, a cabinet 1, and a garbagecan 1."
    go = tuple(f"go to {place}" for place in places)
    text, here, visits = intro, (), []
    while len(visits) < 4 and not (visits and visits[-1].startswith("open")):
        visits.append(expert.act(Observation(text, (*go, *here, "look"))))
        place = visits[-1].removeprefix("go to ").removeprefix("open ")
        text = f"You arrive at {place}. The {place} is closed."
        here = (f"examine {place}", f"open {place}")
        if place.startswith("garbagecan"):
            text, here = f"You arrive at {place}. On the {place}, you see nothing.", (f"examine {place}",)
    assert visits[-1].startswith("open cabinet")


def test_what_it_cannot_use_is_refused():
    with pytest.raises(ValueError, match="admissible actions, got none"):
        HandExpert("move a pot to the cabinet.").act(Observation(INTRO))
    with pytest.raises(ValueError, match="must list the receptacles"):
        HandExpert("move a pot to the cabinet.").act(Observation("Hello.", ("look",)))
    with pytest.raises(ValueError, match="goal must name a known object"):
        HandExpert("move a dragon to the cabinet.")


def play(env, task, *, noise: float, limit: int = 50) -> bool:
    rng = random.Random(task.task_id)
    observation = env.reset(task, 0)
    expert = HandExpert(env.goal)
    for _ in range(limit):
        action = expert.act(observation)
        assert action in observation.admissible
        if rng.random() < noise:
            action = rng.choice(observation.admissible)
        result = env.step(action)
        if result.done:
            return True
        observation = result.observation
    return False


def test_it_recovers_from_random_actions_in_between(tmp_path):
    pytest.importorskip("textworld", reason=missing("textworld"))
    from stepopsd.envs.alfworld import AlfworldEnv
    from stepopsd.envs.games.generator import iter_games
    from stepopsd.envs.games.make import write_task

    env = AlfworldEnv()
    tasks = [write_task(game, tmp_path) for game in iter_games(11, 36)]
    assert sum(play(env, task, noise=0.15) for task in tasks) >= 34


def test_it_wins_generated_games_as_they_are_drawn(tmp_path):
    pytest.importorskip("textworld", reason=missing("textworld"))
    from stepopsd.envs.alfworld import AlfworldEnv
    from stepopsd.envs.games.generator import Difficulty, iter_games
    from stepopsd.envs.games.make import write_task

    env = AlfworldEnv()
    games = [
        *iter_games(23, 12, split="unseen"),
        *iter_games(23, 6, size="full", split="unseen"),
        *islice((game for game in iter_games(29, size="full", difficulty=Difficulty(sliced=1.0)) if game.sliced), 3),
    ]
    tasks = [write_task(game, tmp_path / f"{game.size}-{game.sliced}") for game in games]
    assert [task.task_id for task in tasks if not play(env, task, noise=0.0)] == []


# Existence is checked, not the variable: importing alfworld anywhere points it at an empty cache folder.
OFFICIAL = Path(os.environ.get("ALFWORLD_DATA", "")) / "json_2.1.1"


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs the official games")
def test_it_wins_official_games():
    pytest.importorskip("textworld", reason=missing("textworld"))
    from stepopsd.envs.alfworld import AlfworldEnv, list_tasks

    env = AlfworldEnv()
    tasks = random.Random(0).sample(list_tasks(OFFICIAL, "seen"), 12)
    assert sum(play(env, task, noise=0.0) for task in tasks) == 12
