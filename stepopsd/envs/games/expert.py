"""A hand-written expert: it knows the rules and where things tend to lie, and of a game only what it has seen."""

from __future__ import annotations

import re

from stepopsd.envs.base import Observation
from stepopsd.envs.games.goals import parse_goal
from stepopsd.envs.games.rooms import APPLIANCE, KNIVES, VERB
from stepopsd.envs.games.search import SHARES, in_order, kind_of, search_order

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
_SLICED = re.compile(rf"You sliced the ({_NAME}) with the {_NAME}\.")
_KNIVES = tuple(kind.lower() for kind in KNIVES)


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
        self._cut: set[str] = set()
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
            self._places = self._places or in_order(_ITEMS.findall(intro[1]))
            self._shares = self._shares or SHARES[_room(self._places)]
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
        if cut := _SLICED.search(text):
            self._cut.add(cut[1])
        if carrying := _CARRYING.search(text):
            self._holding = carrying[1]

    def _decide(self) -> str:
        looking = self.goal.task_type == "look_at_obj_in_light"
        if self.goal.sliced and (step := self._slice()):
            return step
        if self._holding is None:
            return self._fetch() or self._search(self.goal.obj, *([self.goal.target] if looking else []))
        if kind_of(self._holding) != self.goal.obj:
            return self._put_down(self._resting_places() if self.goal.sliced else self._places)
        if looking:
            return self._use_lamp()
        if self._verb and self._holding not in self._changed:
            return self._change()
        return self._put_down(self._targets())

    def _fetch(self) -> str | None:
        """Towards the nearest wanted thing that is known and not yet where it belongs."""
        keep = self._kept_places()
        usable = [
            (name, place)
            for name, place in self._known(self.goal.obj)
            if place not in keep and (name in self._cut or not self.goal.sliced)
        ]
        return self._go_and("take {name} from {place}", usable)

    def _slice(self) -> str | None:
        """Towards as many wanted things cut with a knife as are needed; None when they are."""
        needed = 2 if self.goal.task_type == "pick_two_obj_and_place" else 1
        if len(self._cut) >= needed:
            return None
        if self._holding is None:
            return self._go_and("take {name} from {place}", self._known(*_KNIVES)) or self._search(*_KNIVES)
        if kind_of(self._holding) not in _KNIVES:
            return self._put_down(self._resting_places())
        whole = [(name, place) for name, place in self._known(self.goal.obj) if name not in self._cut]
        return self._go_and(f"slice {{name}} with {self._holding}", whole) or self._search(self.goal.obj)

    def _known(self, *kinds: str) -> list[tuple[str, str]]:
        """Things of these kinds that have been seen, with their places."""
        return [(name, place) for place, names in self._contents.items() for name in names if kind_of(name) in kinds]

    def _go_and(self, command: str, known: list[tuple[str, str]]) -> str | None:
        """Towards the nearest known thing, then the command there; what turns out to be gone is forgotten."""
        for name, place in sorted(known, key=lambda pair: not self._at(pair[1])):
            step, there = self._reach(place), command.format(name=name, place=place)
            if step or there in self._can:
                return step or there
            self._forget(name, place)
        return None

    def _resting_places(self) -> list[str]:
        """Places for a knife that has done its work: here, else where knives tend to lie."""
        likely = search_order(self._places, self._places, self._shares, _KNIVES)
        return sorted(likely, key=lambda place: not self._at(place))

    def _kept_places(self) -> set[str]:
        """Places whose wanted things count already, so that they stay there."""
        if self.goal.task_type == "pick_and_place_simple":
            return set(self._target_places())
        if self.goal.task_type == "pick_two_obj_and_place":
            # Whatever place the agent stands at: a choice that follows it would send it to and fro.
            best = sorted(self._target_places(), key=lambda p: (-self._count(p), p not in self._contents))
            return set(best[:1])
        return set()

    def _change(self) -> str:
        """Towards the appliance that cleans, heats or cools what is held."""
        places = [place for place in self._places if kind_of(place) == self._appliance]
        place = min(places, key=lambda p: not self._at(p), default=None)
        if place is None:
            return "look"
        return f"{self._verb} {self._holding} with {place}" if self._at(place) else f"go to {place}"

    def _use_lamp(self) -> str:
        for place, names in self._contents.items():
            for name in names:
                if kind_of(name) == self.goal.target:
                    return self._reach(place) or f"use {name}"
        return self._search(self.goal.target)

    def _targets(self) -> list[str]:
        """Places where the wanted thing may go, best first: where some already are, then here, then in order."""
        return sorted(
            self._target_places(), key=lambda p: (-self._count(p), not self._at(p), p not in self._contents)
        )

    def _target_places(self) -> list[str]:
        return [place for place in self._places if kind_of(place) == self.goal.target]

    def _put_down(self, places: list[str]) -> str:
        assert self._holding is not None
        for place in places:
            if (kind_of(self._holding), place) in self._refused:
                continue
            step = self._reach(place)
            move = f"move {self._holding} to {place}"
            if step or move in self._can:
                return step or move
            self._refused.add((kind_of(self._holding), place))
        return "look"

    def _search(self, *kinds: str) -> str:
        """Towards the unseen place that most likely holds something of these kinds."""
        unseen = [place for place in self._places if place not in self._contents]
        if not unseen:
            # Someone moved things while we were not looking: start over.
            self._contents.clear()
            unseen = self._places
        skip = self._kept_places() if self.goal.obj in kinds else set()
        place = search_order(unseen, self._places, self._shares, kinds, skip)[0]
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
        return sum(kind_of(name) == self.goal.obj for name in self._contents.get(place, ()))

    def _forget(self, name: str, place: str) -> None:
        if name in self._contents.get(place, ()):
            self._contents[place].remove(name)


def _room(places: list[str]) -> str:
    kinds = {kind_of(place) for place in places}
    signs = (("fridge", "kitchen"), ("toilet", "bathroom"), ("bed", "bedroom"))
    return next((room for sign, room in signs if sign in kinds), "living")
