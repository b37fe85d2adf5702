"""Scene layouts: which receptacles a scene has. Fixed by (scene number, size), whatever the seed of a game."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import cache

from stepopsd.envs.games.full_rooms import BESIDE_ANOTHER, BESIDE_ITS_KIND
from stepopsd.envs.games.rooms import FULL_RECEPTACLES, PLACES, ROOMS, TINY_RECEPTACLES

SIZES = ("tiny", "full")
SPLITS = ("train", "seen", "unseen")
FIRST_SCENE = {"kitchen": 1, "living": 201, "bedroom": 301, "bathroom": 401}
SCENES_PER_ROOM = 30
#: scenes that the official training split does not use either, three per room type
HELD_OUT = frozenset({9, 10, 29, 215, 219, 226, 308, 315, 325, 404, 424, 425})
#: every room must offer a place for a desk lamp or something to put things on
_NEEDS_ONE_OF = {
    "kitchen": ("CounterTop",),
    "living": ("SideTable", "CoffeeTable"),
    "bedroom": ("Desk", "SideTable", "Dresser"),
    "bathroom": ("CounterTop", "Cabinet", "Drawer", "Shelf"),
}


@dataclass(frozen=True, slots=True)
class Receptacle:
    """One receptacle of a scene; ``name`` is what the engine calls it, e.g. ``sinkbasin 1``."""

    kind: str
    number: int
    of: int
    location: int

    @property
    def name(self) -> str:
        return f"{self.kind.lower()} {self.number}"


def room_of(scene: int) -> str:
    """Room type of a scene number.

    Raises:
        ValueError: if no room type has that number.
    """
    for room in ROOMS:
        if FIRST_SCENE[room] <= scene < FIRST_SCENE[room] + SCENES_PER_ROOM:
            return room
    raise ValueError(f"scene must lie in 1-30, 201-230, 301-330 or 401-430, got {scene}")


def scenes_of(room: str) -> range:
    """All scene numbers of a room type."""
    return range(FIRST_SCENE[room], FIRST_SCENE[room] + SCENES_PER_ROOM)


def split_scenes(split: str) -> tuple[int, ...]:
    """Scene numbers of a split: ``train`` and ``seen`` share 108, ``unseen`` has the other 12.

    Raises:
        ValueError: for any other name.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    every = (scene for room in ROOMS for scene in scenes_of(room))
    return tuple(scene for scene in every if (scene in HELD_OUT) == (split == "unseen"))


def layout(scene: int, size: str, most: int | None = None) -> tuple[Receptacle, ...]:
    """Receptacles of a scene.

    Args:
        scene: Scene number as in AI2-THOR (kitchens 1-30, living rooms 201-230, bedrooms 301-330,
            bathrooms 401-430).
        size: ``tiny`` or ``full``.
        most: Leave out receptacles, of the commonest types first, until so many are left. One of each type stays.

    Returns:
        The receptacles. Location 0 is where the agent starts; in tiny rooms each receptacle has a location of its
        own, in full ones neighbours may share one. Unless ``most`` is given, two scenes of a room type never have
        the same receptacle counts.

    Raises:
        ValueError: unknown scene number or size, or more types of receptacle than ``most``.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    room = room_of(scene)
    counts = _thinned(dict(_room_counts(room, size)[scene]), scene, most)
    rng = random.Random(f"beside/{scene}")
    out: list[Receptacle] = []
    location = 0
    for kind, number in counts.items():
        for i in range(number):
            shared = _beside(rng, room, kind, out, first=i == 0) if size == "full" else None
            location += shared is None
            out.append(Receptacle(kind, i + 1, number, location if shared is None else shared))
    return tuple(out)


def _thinned(counts: dict[str, int], scene: int, most: int | None) -> dict[str, int]:
    if most is not None and most < len(counts):
        raise ValueError(f"most must be at least {len(counts)}, the types of receptacle in scene {scene}, got {most}")
    while most is not None and sum(counts.values()) > most:
        counts[max(counts, key=lambda kind: counts[kind])] -= 1
    return counts


def _beside(
    rng: random.Random, room: str, kind: str, placed: list[Receptacle], *, first: bool
) -> int | None:
    """The location that the next receptacle shares with one that stands already; None for one of its own."""
    other, chance = (
        BESIDE_ANOTHER[room].get(kind, (kind, 0.0)) if first else (kind, BESIDE_ITS_KIND[room].get(kind, 0.0))
    )
    there = [r.location for r in placed if r.kind == other]
    return there[-1] if rng.random() < chance and there else None


@cache
def _room_counts(room: str, size: str) -> dict[int, tuple[tuple[str, int], ...]]:
    """Receptacle counts of every scene of a room type, all different."""
    used: set[tuple[tuple[str, int], ...]] = set()
    scenes: dict[int, tuple[tuple[str, int], ...]] = {}
    for scene in scenes_of(room):
        rng = random.Random(f"layout/{size}/{scene}")
        while True:
            counts = _draw_tiny_counts(rng, room) if size == "tiny" else _draw_full_counts(rng, room)
            if counts not in used and _usable(room, dict(counts)):
                break
        used.add(counts)
        scenes[scene] = counts
    return scenes


def _draw_tiny_counts(rng: random.Random, room: str) -> tuple[tuple[str, int], ...]:
    drawn: Counter[str] = Counter()
    for kind, (chance, fewest, most) in TINY_RECEPTACLES[room].items():
        if rng.random() < chance:
            drawn[kind] = rng.randint(fewest, most)
    return tuple((kind, number) for kind, number in drawn.items() if number)


def _draw_full_counts(rng: random.Random, room: str) -> tuple[tuple[str, int], ...]:
    table = FULL_RECEPTACLES[room].items()
    return tuple((kind, rng.choice(numbers)) for kind, (chance, numbers) in table if rng.random() < chance)


def _usable(room: str, counts: dict[str, int]) -> bool:
    """Whether there is a surface that the tasks need, and at least three kinds of place to look into."""
    searched = {where for shares in PLACES[room].values() for where in shares}
    return any(kind in counts for kind in _NEEDS_ONE_OF[room]) and len(searched & set(counts)) >= 3
