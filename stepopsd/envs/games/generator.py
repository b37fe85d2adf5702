"""Drawing games: a scene, what lies where in it, and one goal that can be reached."""

from __future__ import annotations

import itertools
import random
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from stepopsd.envs.games.draw import Wish, draw_things, draw_wish
from stepopsd.envs.games.full_rooms import ROOM_WEIGHTS
from stepopsd.envs.games.game import Game
from stepopsd.envs.games.goals import TASK_TYPES, goal_text, wordings
from stepopsd.envs.games.layout import SIZES, Receptacle, layout, room_of, split_scenes
from stepopsd.envs.games.pddl import Thing, problem_text
from stepopsd.envs.games.plan import distance, plan

_MAX_DRAWS = 5000  #: draws of one game before its difficulty counts as out of reach


@dataclass(frozen=True, slots=True)
class Difficulty:
    """What makes games longer, beyond their size.

    Attributes:
        receptacles: Fewest and most of them in a scene. Scenes with fewer are left out; from scenes with more,
            receptacles of the commonest types are, down to one of each type.
        distance: Fewest and most places that look likelier than the one where the wanted object lies (the second
            one, where two are wanted), so that a sensible search goes to them first and in vain.
        sliced: Share of wanted food that has to be sliced with a knife before it counts, 0 to 1; full size only.

    Raises:
        ValueError: a range that is empty or begins below zero, or a share outside 0 to 1.
    """

    receptacles: tuple[int, int] | None = None
    distance: tuple[int, int] | None = None
    sliced: float = 0.0

    def __post_init__(self) -> None:
        for name in ("receptacles", "distance"):
            span = getattr(self, name)
            if span is not None and not 0 <= span[0] <= span[1]:
                raise ValueError(f"{name} must be two numbers, fewest and most, got {span[0]} {span[1]}")
        if not 0 <= self.sliced <= 1:
            raise ValueError(f"sliced must lie in [0, 1], got {self.sliced}")


def iter_games(
    seed: int,
    count: int | None = None,
    *,
    size: str = "tiny",
    scenes: Sequence[int] | None = None,
    split: str = "train",
    exclude: Container[str] = (),
    difficulty: Difficulty | None = None,
) -> Iterator[Game]:
    """Draw games in memory, task types in turn; nothing touches the disk or the engine.

    Args:
        seed: Any integer; the same arguments give the same games, and a longer run starts with a shorter one.
        count: How many; ``None`` for no end.
        size: ``tiny`` or ``full``.
        scenes: Scene numbers to draw from; those of ``split`` unless given.
        split: ``train``, ``seen`` or ``unseen``: each has random numbers of its own.
        exclude: ``Game.content_key`` of games that must not come up, e.g. those of evaluation panels.
        difficulty: Limits on receptacles and distance, and the share of sliced objects.

    Raises:
        ValueError: an unknown size or scene, scenes in which some task type is impossible, or (while drawing) a
            difficulty that no draw meets.

    Example:
        >>> [game.task_type for game in iter_games(0, 2)]
        ['pick_and_place_simple', 'look_at_obj_in_light']
    """
    if count is not None and count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    difficulty = difficulty or Difficulty()
    if difficulty.sliced and size != "full":
        raise ValueError(f"sliced needs size full, got {size!r}")
    rooms = _layouts(split_scenes(split) if scenes is None else scenes, size, difficulty)
    for task_type in TASK_TYPES:
        if not _possible_scenes(task_type, rooms):
            limit = "" if difficulty.receptacles is None else f" within receptacles {difficulty.receptacles}"
            raise ValueError(f"scenes must include a room for {task_type}{limit}, got {list(rooms)}")
    return islice(_endless(seed, size, rooms, split, exclude, difficulty), count)


_Rooms = dict[int, tuple[Receptacle, ...]]


def _layouts(scenes: Sequence[int], size: str, difficulty: Difficulty) -> _Rooms:
    """The receptacles of every scene, within the limits; scenes outside of them are left out."""
    if difficulty.receptacles is None:
        return {scene: layout(scene, size) for scene in scenes}
    fewest, most = difficulty.receptacles
    rooms = {scene: layout(scene, size) for scene in scenes}
    kinds = {scene: len({r.kind for r in places}) for scene, places in rooms.items()}
    return {
        scene: layout(scene, size, most)
        for scene, places in rooms.items()
        if len(places) >= fewest and kinds[scene] <= most
    }


def _endless(
    seed: int, size: str, rooms: _Rooms, split: str, exclude: Container[str], difficulty: Difficulty
) -> Iterator[Game]:
    used: set[str] = set()
    for index in itertools.count():
        rng = random.Random(f"game/{size}/{split}/{seed}/{index}")
        task_type = TASK_TYPES[index % len(TASK_TYPES)]
        game = _draw_game(rng, f"trial_{seed}_{index:06d}", size, rooms, task_type, difficulty)
        while game.content_key in used or game.content_key in exclude:
            game = _draw_game(rng, game.trial, size, rooms, task_type, difficulty)
        used.add(game.content_key)
        yield game


def _draw_game(
    rng: random.Random, trial: str, size: str, rooms: _Rooms, task_type: str, difficulty: Difficulty
) -> Game:
    candidates = _possible_scenes(task_type, rooms)
    for _ in range(_MAX_DRAWS):
        scene = rng.choice(candidates) if size == "tiny" else _weighted_scene(rng, task_type, candidates)
        room, receptacles = room_of(scene), rooms[scene]
        wish = draw_wish(rng, size, task_type, room, receptacles, difficulty.sliced)
        if wish is None:
            continue
        things = draw_things(rng, size, room, receptacles, wish)
        if things is not None and _hidden_as_asked(receptacles, things, wish, room, difficulty):
            return _finish(rng, trial, scene, size, receptacles, things, wish)
    raise ValueError(
        f"distance {difficulty.distance}: none of {_MAX_DRAWS} draws of {size} {task_type} games hides its object so;"
        " ask for a wider range, more receptacles or another size"
    )


def _hidden_as_asked(
    receptacles: tuple[Receptacle, ...], things: tuple[Thing, ...], wish: Wish, room: str, difficulty: Difficulty
) -> bool:
    if difficulty.distance is None:
        return True
    nearest, farthest = difficulty.distance
    return nearest <= distance(receptacles, things, wish, room) <= farthest


def _possible_scenes(task_type: str, scenes: Iterable[int]) -> list[int]:
    return [scene for scene in scenes if room_of(scene) in ROOM_WEIGHTS[task_type]]


def _weighted_scene(rng: random.Random, task_type: str, scenes: Sequence[int]) -> int:
    """A scene of a room type that is drawn as often as the official games have it."""
    rooms = sorted({room_of(scene) for scene in scenes})
    room = rng.choices(rooms, [ROOM_WEIGHTS[task_type][room] for room in rooms])[0]
    return rng.choice([scene for scene in scenes if room_of(scene) == room])


def _finish(
    rng: random.Random,
    trial: str,
    scene: int,
    size: str,
    receptacles: tuple[Receptacle, ...],
    things: tuple[Thing, ...],
    wish: Wish,
) -> Game:
    task_type, obj, target = wish.task_type, wish.obj, wish.target
    wording = rng.randrange(wordings(task_type, size))
    return Game(
        task_type=task_type,
        obj=obj,
        target=target,
        scene=scene,
        size=size,
        trial=trial,
        goal=goal_text(task_type, obj, target, wording, sliced=wish.sliced),
        problem=problem_text(trial, receptacles, things, task_type, obj, target, size=size, sliced=wish.sliced),
        walkthrough=tuple(plan(receptacles, things, wish, size)),
        sliced=wish.sliced,
    )
