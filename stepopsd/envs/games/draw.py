"""What is wanted in a scene and what lies where in it, drawn at random."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepopsd.envs.games.full_rooms import (
    EVEN_INSTANCES,
    FLOOR,
    FLOOR_NEAR_RECEPTACLE,
    INSTANCES,
    TARGETS,
    WANTED,
    WANTED_INSTANCES,
)
from stepopsd.envs.games.layout import Receptacle
from stepopsd.envs.games.pddl import Thing
from stepopsd.envs.games.rooms import (
    APPLIANCE,
    CLEANABLE,
    COOLABLE,
    HEATABLE,
    KNIVES,
    LAMP,
    PLACES,
    PRESENCE,
    SCENERY,
    SCENERY_PLACES,
    SINGLE,
    SLICEABLE,
    can_contain,
)

_CHANGEABLE = {
    "pick_clean_then_place_in_recep": CLEANABLE,
    "pick_heat_then_place_in_recep": HEATABLE,
    "pick_cool_then_place_in_recep": COOLABLE,
}
_TINY_KINDS = {"kitchen": (5, 7), "living": (3, 5), "bedroom": (3, 5), "bathroom": (3, 5)}
_TINY_INSTANCES = 2
#: types for which a wanted object must not lie at its target: there it would make the game won, or half won
_COUNTED_AT_ONCE = ("pick_and_place_simple", "pick_two_obj_and_place")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a game asks for: objects of type ``obj`` brought to ``target``, sliced before where ``sliced``."""

    task_type: str
    obj: str
    target: str
    sliced: bool = False

    @property
    def number(self) -> int:
        return 2 if self.task_type == "pick_two_obj_and_place" else 1


def draw_wish(
    rng: random.Random, size: str, task_type: str, room: str, receptacles: tuple[Receptacle, ...], sliced: float = 0.0
) -> Wish | None:
    """An object type of the room and a receptacle type that may hold it; None if the draw cannot work.

    Args:
        sliced: Chance that an object that can be sliced has to be.
    """
    here = {r.kind for r in receptacles}
    kinds = [kind for kind in PLACES[room] if kind != LAMP and here & PLACES[room][kind].keys()]
    kinds = [kind for kind in kinds if kind in _CHANGEABLE.get(task_type, kinds)]
    if task_type == "pick_two_obj_and_place":
        kinds = [kind for kind in kinds if kind not in SINGLE]
    if not kinds:
        return None
    obj = _choose(rng, kinds, WANTED[task_type] if size == "full" else None)
    if task_type == "look_at_obj_in_light":
        return Wish(task_type, obj, LAMP)
    spoilt = APPLIANCE.get(task_type)
    targets = sorted(where for where, kind in can_contain(size) if kind == obj and where in here - {spoilt})
    if not targets:
        return None
    target = _choose(rng, targets, TARGETS[task_type] if size == "full" else None)
    # The official games slice all that can be sliced but eggs.
    cut = sliced > 0 and obj in SLICEABLE - {"Egg"} and room == "kitchen" and rng.random() < sliced
    return Wish(task_type, obj, target, cut)


def draw_things(
    rng: random.Random, size: str, room: str, receptacles: tuple[Receptacle, ...], wish: Wish
) -> tuple[Thing, ...] | None:
    """Everything that lies in the room; None if the wanted object would have no place to start from."""
    kinds = sorted(_draw_kinds(rng, size, room, wish))
    counts: dict[str, int] = {kind: _instances(rng, kind, size, room) for kind in kinds}
    if size == "full" and wish.obj not in SINGLE:
        counts[wish.obj] = _weighted_number(rng, WANTED_INSTANCES[wish.task_type])
    elif wish.number == 2:
        counts[wish.obj] = rng.randint(2, _TINY_INSTANCES)
    things: list[Thing] = []
    for kind, number in counts.items():
        counted = kind == wish.obj and (size == "tiny" or wish.task_type in _COUNTED_AT_ONCE)
        spots = _spots(PLACES[room][kind], receptacles, wish.target if counted else None)
        if not spots:
            if kind in (wish.obj, wish.target) or (wish.sliced and kind in KNIVES):
                return None
            continue
        wheres = rng.choices(*zip(*spots, strict=True), k=number)
        things += [Thing(kind, i + 1, number, where) for i, where in enumerate(wheres)]
    if size == "full":
        things += _draw_scenery(rng, room, receptacles)
        things += _draw_floor(rng, room, receptacles)
    return tuple(things)


def _draw_kinds(rng: random.Random, size: str, room: str, wish: Wish) -> set[str]:
    present = [kind for kind in PLACES[room] if rng.random() < PRESENCE[room].get(kind, 1)]
    needed = {wish.obj} | ({LAMP} if wish.target == LAMP else set()) | ({KNIVES[0]} if wish.sliced else set())
    if size == "full":
        return needed | set(present)
    others = [kind for kind in present if kind not in needed]
    total = rng.randint(*_TINY_KINDS[room])
    return needed | set(rng.sample(others, min(len(others), max(0, total - len(needed)))))


def _choose(rng: random.Random, options: Sequence[str], weights: Mapping[str, int] | None) -> str:
    """One option; where there are weights, what they leave out weighs one."""
    return rng.choice(options) if weights is None else rng.choices(options, [weights.get(o, 1) for o in options])[0]


def _instances(rng: random.Random, kind: str, size: str, room: str) -> int:
    if kind in SINGLE and kind not in INSTANCES[room]:
        return 1
    if size == "tiny":
        return 1 if kind in SINGLE else rng.randint(1, _TINY_INSTANCES)
    return _weighted_number(rng, INSTANCES[room].get(kind, EVEN_INSTANCES))


def _weighted_number(rng: random.Random, weights: Sequence[int]) -> int:
    return rng.choices(range(1, len(weights) + 1), weights)[0]


def _draw_scenery(rng: random.Random, room: str, receptacles: tuple[Receptacle, ...]) -> list[Thing]:
    things = []
    for kind, (share, _) in SCENERY[room].items():
        spots = _spots(SCENERY_PLACES[room][kind], receptacles, None)
        if spots and rng.random() < share:
            things.append(Thing(kind, 1, 1, rng.choices(*zip(*spots, strict=True))[0]))
    return things


def _draw_floor(rng: random.Random, room: str, receptacles: tuple[Receptacle, ...]) -> list[Thing]:
    """Things out of reach, near a receptacle or at a location of their own."""
    things: list[Thing] = []
    location = max(r.location for r in receptacles)
    for kind, (most, share) in FLOOR[room].items():
        number = sum(rng.random() < share for _ in range(most))
        for i in range(number):
            near = rng.random() < FLOOR_NEAR_RECEPTACLE
            location += not near
            things.append(Thing(kind, i + 1, number, None, rng.choice(receptacles).location if near else location))
    return things


def _spots(
    shares: Mapping[str, int], receptacles: tuple[Receptacle, ...], avoid: str | None
) -> list[tuple[Receptacle, float]]:
    """Receptacles with their weight: a type's share is divided among the receptacles of that type."""
    return [(r, shares[r.kind] / r.of) for r in receptacles if r.kind in shares and r.kind != avoid]
