"""A hand-written expert: it knows the rules and where things tend to lie, and of a game only what it has seen."""

from __future__ import annotations

import re
from collections import Counter

from stepopsd.envs.base import Observation
from stepopsd.envs.games.goals import parse_goal
from stepopsd.envs.games.rooms import APPLIANCE, OPENABLE, PLACES, VERB

_NAME = r"[a-z]+ \d+"
_ITEMS = re.compile(rf"\ban? ({_NAME})")
_INTRO = re.compile(r"looking quickly around you, you see (.*)\.", re.IGNORECASE)
_CONTENTS = re.compile(
    rf"(?:On the ({_NAME})|The ({_NAME}) is open\. In it), you see (.*?)\.(?:\s|$)", re.IGNORECASE
)
_TAKEN = re.compile(rf"You pick up the ({_NAME}) from the ({_NAME})\.")
_MOVED = re.compile(rf"You move the ({_NAME}) to the ({_NAME})\.")
_CHANGED = re.compile(rf"You (clean|heat|cool) the ({_NAME}) using the {_NAME}\.")
_CARRYING = re.compile(rf"You are carrying: an? ({_NAME})\.")
_UNLISTED_SHARE = 0.5  #: chance, in per cent, for kinds of place in which we never saw such a thing
_OPENABLE = frozenset(kind.lower() for kind in OPENABLE)
_SHARES = {
    room: {
        kind.lower(): {where.lower(): float(share) for where, share in shares.items()}
        for kind, shares in table.items()
    }
    for room, table in PLACES.items()
}


class HandExpert:
    """Plays one episode of any of the six task types, generated or official.

    It searches the most promising unseen place first (share of such things in such places, divided among the
    places of that kind, halved where something has to be opened), and remembers what it saw. It also recovers when
    someone else plays in between: every action is chosen afresh from what has been observed.

    Args:
        goal_text: The instruction, in our wordings or the official ones.

    Raises:
        ValueError: if the instruction names no known object or place.

    Example:
        >>> expert = HandExpert(env.goal)
        >>> result = env.step(expert.act(observation))
    """

    def __init__(self, goal_text: str) -> None:
        self.goal = parse_goal(goal_text)
        verb = VERB.get(self.goal.task_type)
        self._verb = verb
        self._appliance = APPLIANCE[self.goal.task_type].lower() if verb else ""
        self._places: list[str] = []
        self._shares: dict[str, dict[str, float]] = {}
        self._contents: dict[str, list[str]] = {}
        self._refused: set[tuple[str, str]] = set()
        self._changed: set[str] = set()
        self._holding: str | None = None
        self._can: frozenset[str] = frozenset()

    def act(self, observation: Observation) -> str:
        """The next action.

        Args:
            observation: What the environment said last, starting with the episode's first observation; has to list
                the admissible actions.

        Returns:
            One of the admissible actions.

        Raises:
            ValueError: if the observation lists no admissible actions, or the first one no receptacles.
        """
        if not observation.admissible:
            raise ValueError("observation must list the admissible actions, got none")
        self._can = frozenset(observation.admissible)
        self._read(observation.text)
        if not self._places:
            raise ValueError(f"the first observation must list the receptacles, got {observation.text!r}")
        action = self._decide()
        return action if action in self._can else "look"

    def _read(self, text: str) -> None:
        if intro := _INTRO.search(text):
            self._places = self._places or sorted(_ITEMS.findall(intro[1]), key=_order)
            self._shares = self._shares or _SHARES[_room(self._places)]
        for on, inside, items in _CONTENTS.findall(text):
            self._contents[on or inside] = _ITEMS.findall(items)
        if taken := _TAKEN.search(text):
            self._holding = taken[1]
            self._forget(*taken.groups())
        if moved := _MOVED.search(text):
            self._holding = None
            self._contents.setdefault(moved[2], []).append(moved[1])
        if (changed := _CHANGED.search(text)) and changed[1] == self._verb:
            self._changed.add(changed[2])
        if carrying := _CARRYING.search(text):
            self._holding = carrying[1]

    def _decide(self) -> str:
        looking = self.goal.task_type == "look_at_obj_in_light"
        if self._holding is None:
            return self._fetch() or self._search(self.goal.obj, *([self.goal.target] if looking else []))
        if _kind(self._holding) != self.goal.obj:
            return self._put_down(self._places)
        if looking:
            return self._use_lamp()
        if self._verb and self._holding not in self._changed:
            return self._change()
        return self._put_down(self._targets())

    def _fetch(self) -> str | None:
        """Towards the nearest wanted thing that is known and not yet where it belongs."""
        keep = self._kept_places()
        known = [
            (name, place)
            for place, names in self._contents.items()
            for name in names
            if _kind(name) == self.goal.obj and place not in keep
        ]
        for name, place in sorted(known, key=lambda pair: not self._at(pair[1])):
            take = f"take {name} from {place}"
            step = self._reach(place)
            if step or take in self._can:
                return step or take
            self._forget(name, place)
        return None

    def _kept_places(self) -> set[str]:
        """Places whose wanted things count already, so that they stay there."""
        if self.goal.task_type == "pick_and_place_simple":
            return set(self._targets())
        if self.goal.task_type == "pick_two_obj_and_place":
            return set(self._targets()[:1])
        return set()

    def _change(self) -> str:
        """Towards the appliance that cleans, heats or cools what is held."""
        places = [place for place in self._places if _kind(place) == self._appliance]
        place = min(places, key=lambda p: not self._at(p), default=None)
        if place is None:
            return "look"
        return f"{self._verb} {self._holding} with {place}" if self._at(place) else f"go to {place}"

    def _use_lamp(self) -> str:
        for place, names in self._contents.items():
            for name in names:
                if _kind(name) == self.goal.target:
                    return self._reach(place) or f"use {name}"
        return self._search(self.goal.target)

    def _targets(self) -> list[str]:
        """Places where the wanted thing may go, best first: where some already are, then here, then in order."""
        places = [place for place in self._places if _kind(place) == self.goal.target]
        return sorted(places, key=lambda p: (-self._count(p), not self._at(p), p not in self._contents))

    def _put_down(self, places: list[str]) -> str:
        assert self._holding is not None
        for place in places:
            if (_kind(self._holding), place) in self._refused:
                continue
            step = self._reach(place)
            move = f"move {self._holding} to {place}"
            if step or move in self._can:
                return step or move
            self._refused.add((_kind(self._holding), place))
        return "look"

    def _search(self, *kinds: str) -> str:
        """Towards the unseen place that most likely holds something of these kinds."""
        unseen = [place for place in self._places if place not in self._contents]
        if not unseen:
            # Someone moved things while we were not looking: start over.
            self._contents.clear()
            unseen = self._places
        number = Counter(_kind(place) for place in self._places)
        skip = self._kept_places() if self.goal.obj in kinds else set()

        def promise(place: str) -> float:
            kind = _kind(place)
            share = sum(self._shares.get(wanted, {}).get(kind, _UNLISTED_SHARE) for wanted in kinds)
            return share / number[kind] / (2 if kind in _OPENABLE else 1) * (place not in skip)

        place = max(unseen, key=promise)
        return self._reach(place) or f"examine {place}"

    def _reach(self, place: str) -> str | None:
        """The action that brings us nearer to the inside of a place; None when we are there."""
        if not self._at(place):
            return f"go to {place}"
        return f"open {place}" if f"open {place}" in self._can else None

    def _at(self, place: str) -> bool:
        # Receptacles can share a location, so the last "go to" does not tell.
        return f"examine {place}" in self._can

    def _count(self, place: str) -> int:
        return sum(_kind(name) == self.goal.obj for name in self._contents.get(place, ()))

    def _forget(self, name: str, place: str) -> None:
        if name in self._contents.get(place, ()):
            self._contents[place].remove(name)


def _kind(name: str) -> str:
    return name.split(" ")[0]


def _order(name: str) -> tuple[str, int]:
    kind, number = name.split(" ")
    return kind, int(number)


def _room(places: list[str]) -> str:
    kinds = {_kind(place) for place in places}
    signs = (("fridge", "kitchen"), ("toilet", "bathroom"), ("bed", "bedroom"))
    return next((room for sign, room in signs if sign in kinds), "living")
