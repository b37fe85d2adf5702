"""Drawing games: a scene, what lies where in it, and one goal that can be reached."""

from __future__ import annotations

import itertools
import random
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from stepopsd.envs.games.game import Game
from stepopsd.envs.games.goals import TASK_TYPES, goal_text
from stepopsd.envs.games.layout import SIZES, Receptacle, layout, room_of, split_scenes
from stepopsd.envs.games.pddl import Thing, problem_text
from stepopsd.envs.games.rooms import (
    APPLIANCE,
    CLEANABLE,
    COOLABLE,
    HEATABLE,
    LAMP,
    OPENABLE,
    PLACES,
    PRESENCE,
    SCENERY,
    SCENERY_PLACES,
    SINGLE,
    VERB,
    can_contain,
)

_ROOMS_OF_TASK = {
    "pick_and_place_simple": ("kitchen", "living", "bedroom", "bathroom"),
    "look_at_obj_in_light": ("living", "bedroom"),
    "pick_clean_then_place_in_recep": ("kitchen", "bathroom"),
    "pick_heat_then_place_in_recep": ("kitchen",),
    "pick_cool_then_place_in_recep": ("kitchen",),
    "pick_two_obj_and_place": ("kitchen", "living", "bedroom", "bathroom"),
}
_CHANGEABLE = {
    "pick_clean_then_place_in_recep": CLEANABLE,
    "pick_heat_then_place_in_recep": HEATABLE,
    "pick_cool_then_place_in_recep": COOLABLE,
}
_TINY_KINDS = {"kitchen": (5, 7), "living": (3, 5), "bedroom": (3, 5), "bathroom": (3, 5)}
_MAX_INSTANCES = {"tiny": 2, "full": 3}


@dataclass(frozen=True, slots=True)
class _Wish:
    task_type: str
    obj: str
    target: str


def iter_games(
    seed: int,
    count: int | None = None,
    *,
    size: str = "tiny",
    scenes: Sequence[int] | None = None,
    split: str = "train",
    exclude: Container[str] = (),
) -> Iterator[Game]:
    """Draw games in memory, task types in turn; nothing touches the disk or the engine.

    Args:
        seed: Any integer; the same arguments give the same games, and a longer run starts with a shorter one.
        count: How many; ``None`` for no end.
        size: ``tiny`` or ``full``.
        scenes: Scene numbers to draw from; those of ``split`` unless given.
        split: ``train``, ``seen`` or ``unseen``: each has random numbers of its own.
        exclude: ``Game.content_key`` of games that must not come up, e.g. those of evaluation panels.

    Raises:
        ValueError: an unknown size or scene, or scenes in which some task type is impossible.

    Example:
        >>> [game.task_type for game in iter_games(0, 2)]
        ['pick_and_place_simple', 'look_at_obj_in_light']
    """
    if count is not None and count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    scenes = split_scenes(split) if scenes is None else tuple(scenes)
    for task_type in TASK_TYPES:
        if not _possible_scenes(task_type, scenes):
            raise ValueError(f"scenes must include a room for {task_type}, got {list(scenes)}")
    return islice(_endless(seed, size, scenes, split, exclude), count)


def _endless(
    seed: int, size: str, scenes: Sequence[int], split: str, exclude: Container[str]
) -> Iterator[Game]:
    used: set[str] = set()
    for index in itertools.count():
        rng = random.Random(f"game/{size}/{split}/{seed}/{index}")
        game = _draw_game(rng, f"trial_{seed}_{index:06d}", size, scenes, TASK_TYPES[index % len(TASK_TYPES)])
        while game.content_key in used or game.content_key in exclude:
            game = _draw_game(rng, game.trial, size, scenes, game.task_type)
        used.add(game.content_key)
        yield game


def _draw_game(rng: random.Random, trial: str, size: str, scenes: Sequence[int], task_type: str) -> Game:
    candidates = _possible_scenes(task_type, scenes)
    while True:
        scene = rng.choice(candidates)
        receptacles = layout(scene, size)
        wish = _draw_wish(rng, task_type, room_of(scene), receptacles)
        if wish is None:
            continue
        things = _draw_things(rng, size, room_of(scene), receptacles, wish)
        if things is not None:
            return _finish(rng, trial, scene, size, receptacles, things, wish)


def _possible_scenes(task_type: str, scenes: Sequence[int]) -> list[int]:
    return [scene for scene in scenes if room_of(scene) in _ROOMS_OF_TASK[task_type]]


def _draw_wish(
    rng: random.Random, task_type: str, room: str, receptacles: tuple[Receptacle, ...]
) -> _Wish | None:
    """An object type of the room and a receptacle type that may hold it; None if the draw cannot work."""
    here = {r.kind for r in receptacles}
    kinds = [kind for kind in PLACES[room] if kind != LAMP and here & PLACES[room][kind].keys()]
    kinds = [kind for kind in kinds if kind in _CHANGEABLE.get(task_type, kinds)]
    if task_type == "pick_two_obj_and_place":
        kinds = [kind for kind in kinds if kind not in SINGLE]
    if not kinds:
        return None
    obj = rng.choice(kinds)
    if task_type == "look_at_obj_in_light":
        return _Wish(task_type, obj, LAMP)
    spoilt = APPLIANCE.get(task_type)
    targets = sorted(where for where, kind in can_contain() if kind == obj and where in here - {spoilt})
    return _Wish(task_type, obj, rng.choice(targets)) if targets else None


def _draw_things(
    rng: random.Random, size: str, room: str, receptacles: tuple[Receptacle, ...], wish: _Wish
) -> tuple[Thing, ...] | None:
    """Everything that lies in the room; None if the wanted object would have no place to start from."""
    counts = {kind: _instances(rng, kind, size) for kind in sorted(_draw_kinds(rng, size, room, wish))}
    if wish.task_type == "pick_two_obj_and_place":
        counts[wish.obj] = rng.randint(2, _MAX_INSTANCES[size])
    things: list[Thing] = []
    for kind, number in counts.items():
        # A wanted object that already lies at the target would make the game won, or half won, at the start.
        avoid = wish.target if kind == wish.obj else None
        spots = _spots(PLACES[room][kind], receptacles, avoid)
        if not spots:
            if kind in (wish.obj, wish.target):
                return None
            continue
        wheres = rng.choices(*zip(*spots, strict=True), k=number)
        things += [Thing(kind, i + 1, number, where) for i, where in enumerate(wheres)]
    if size == "full":
        things += _draw_scenery(rng, room, receptacles)
    return tuple(things)


def _draw_kinds(rng: random.Random, size: str, room: str, wish: _Wish) -> set[str]:
    present = [kind for kind in PLACES[room] if rng.random() < PRESENCE[room].get(kind, 1)]
    needed = {wish.obj} | ({LAMP} if wish.target == LAMP else set())
    if size == "full":
        return needed | set(present)
    others = [kind for kind in present if kind not in needed]
    total = rng.randint(*_TINY_KINDS[room])
    return needed | set(rng.sample(others, min(len(others), max(0, total - len(needed)))))


def _instances(rng: random.Random, kind: str, size: str) -> int:
    return 1 if kind in SINGLE else rng.randint(1, _MAX_INSTANCES[size])


def _draw_scenery(rng: random.Random, room: str, receptacles: tuple[Receptacle, ...]) -> list[Thing]:
    things = []
    for kind, (share, _) in SCENERY[room].items():
        spots = _spots(SCENERY_PLACES[room][kind], receptacles, None)
        if spots and rng.random() < share:
            things.append(Thing(kind, 1, 1, rng.choices(*zip(*spots, strict=True))[0]))
    return things


def _spots(
    shares: dict[str, int], receptacles: tuple[Receptacle, ...], avoid: str | None
) -> list[tuple[Receptacle, float]]:
    """Receptacles with their weight: a type's share is divided among the receptacles of that type."""
    return [(r, shares[r.kind] / r.of) for r in receptacles if r.kind in shares and r.kind != avoid]


def _finish(
    rng: random.Random,
    trial: str,
    scene: int,
    size: str,
    receptacles: tuple[Receptacle, ...],
    things: tuple[Thing, ...],
    wish: _Wish,
) -> Game:
    return Game(
        task_type=wish.task_type,
        obj=wish.obj,
        target=wish.target,
        scene=scene,
        size=size,
        trial=trial,
        goal=goal_text(wish.task_type, wish.obj, wish.target, rng.randrange(2)),
        problem=problem_text(trial, receptacles, things, wish.task_type, wish.obj, wish.target),
        walkthrough=tuple(_walkthrough(receptacles, things, wish)),
    )


def _walkthrough(
    receptacles: tuple[Receptacle, ...], things: tuple[Thing, ...], wish: _Wish
) -> list[str]:
    """A plan for someone who knows where everything is."""
    route = _Route()
    wanted = [t for t in things if t.kind == wish.obj]
    if wish.target == LAMP:
        lamp = next(t for t in things if t.kind == LAMP)
        route.fetch(wanted[0])
        route.visit(lamp.where)
        return [*route.commands, f"use {lamp.name}"]
    goal_place = next(r for r in receptacles if r.kind == wish.target)
    for thing in wanted[: 2 if wish.task_type == "pick_two_obj_and_place" else 1]:
        route.fetch(thing)
        if wish.task_type in APPLIANCE:
            appliance = next(r for r in receptacles if r.kind == APPLIANCE[wish.task_type])
            route.visit(appliance, open_it=False)
            route.commands.append(f"{VERB[wish.task_type]} {thing.name} with {appliance.name}")
        route.visit(goal_place)
        route.commands.append(f"move {thing.name} to {goal_place.name}")
    return route.commands


class _Route:
    """Commands so far, where the agent stands and what it has opened."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.here: Receptacle | None = None
        self.opened: set[str] = set()

    def visit(self, place: Receptacle, *, open_it: bool = True) -> None:
        if place != self.here:
            self.commands.append(f"go to {place.name}")
            self.here = place
        if open_it and place.kind in OPENABLE and place.name not in self.opened:
            self.opened.add(place.name)
            self.commands.append(f"open {place.name}")

    def fetch(self, thing: Thing) -> None:
        self.visit(thing.where)
        self.commands.append(f"take {thing.name} from {thing.where.name}")
