"""The walkthrough of a drawn game, and how well what it asks for is hidden."""

from __future__ import annotations

from stepopsd.envs.games.draw import Wish
from stepopsd.envs.games.layout import Receptacle
from stepopsd.envs.games.pddl import Thing
from stepopsd.envs.games.rooms import APPLIANCE, KNIVES, LAMP, OPENABLE, VERB, can_contain
from stepopsd.envs.games.search import SHARES, in_order, search_order


def plan(receptacles: tuple[Receptacle, ...], things: tuple[Thing, ...], wish: Wish, size: str) -> list[str]:
    """Commands that win, for someone who knows where everything is."""
    route = _Route()
    wanted = [t for t in things if t.kind == wish.obj]
    if wish.target == LAMP:
        lamp = next(t for t in things if t.kind == LAMP)
        route.fetch(wanted[0])
        route.visit(_place(lamp))
        return [*route.commands, f"use {lamp.name}"]
    goal_place = next(r for r in receptacles if r.kind == wish.target)
    if wish.sliced:
        _slice(route, receptacles, things, wanted[: wish.number], size)
    for thing in wanted[: wish.number]:
        route.fetch(thing)
        if wish.task_type in APPLIANCE:
            appliance = next(r for r in receptacles if r.kind == APPLIANCE[wish.task_type])
            route.visit(appliance, open_it=False)
            route.commands.append(f"{VERB[wish.task_type]} {thing.name} with {appliance.name}")
        route.visit(goal_place)
        route.commands.append(f"move {thing.name} to {goal_place.name}")
    return route.commands


def distance(receptacles: tuple[Receptacle, ...], things: tuple[Thing, ...], wish: Wish, room: str) -> int:
    """Places that look likelier than the one where the wanted object lies (the second one, where two are wanted)."""
    names = in_order(r.name for r in receptacles)
    looked_for = [wish.obj.lower()] + ([LAMP.lower()] if wish.target == LAMP else [])
    rank = {name: i for i, name in enumerate(search_order(names, names, SHARES[room], looked_for))}
    return sorted(rank[_place(t).name] for t in things if t.kind == wish.obj)[wish.number - 1]


def _slice(
    route: _Route, receptacles: tuple[Receptacle, ...], things: tuple[Thing, ...], wanted: list[Thing], size: str
) -> None:
    """Fetch a knife, cut what is wanted where it lies, and put the knife down."""
    knife = next(t for t in things if t.kind in KNIVES)
    route.fetch(knife)
    for thing in wanted:
        route.visit(_place(thing))
        route.commands.append(f"slice {thing.name} with {knife.name}")
    rests = [r for r in receptacles if (r.kind, knife.kind) in can_contain(size)]
    rest = next((r for r in rests if r == route.here), rests[0])
    route.visit(rest)
    route.commands.append(f"move {knife.name} to {rest.name}")


def _place(thing: Thing) -> Receptacle:
    assert thing.where is not None  # of scenery alone
    return thing.where


class _Route:
    """Commands so far, where the agent stands and what it has opened."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.here: Receptacle | None = None
        self.opened: set[str] = set()

    def visit(self, place: Receptacle, *, open_it: bool = True) -> None:
        if self.here is None or place.location != self.here.location:
            self.commands.append(f"go to {place.name}")
        self.here = place
        if open_it and place.kind in OPENABLE and place.name not in self.opened:
            self.opened.add(place.name)
            self.commands.append(f"open {place.name}")

    def fetch(self, thing: Thing) -> None:
        place = _place(thing)
        self.visit(place)
        self.commands.append(f"take {thing.name} from {place.name}")
