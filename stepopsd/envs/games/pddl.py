"""Writing a scene as a PDDL problem for alfworld's domain."""

from __future__ import annotations

from dataclasses import dataclass

from stepopsd.envs.games.full_rooms import PORTABLE_ON_FLOOR
from stepopsd.envs.games.goals import pddl_goal
from stepopsd.envs.games.layout import Receptacle
from stepopsd.envs.games.rooms import (
    CLEANABLE,
    COOLABLE,
    HEATABLE,
    HOLDERS,
    LAMP,
    OPENABLE,
    PLACES,
    SLICEABLE,
    can_contain,
)

#: types that the domain's actions name, so every problem has to declare them
_DOMAIN_RECEPTACLES = ("FridgeType", "MicrowaveType", "SinkBasinType", "SinkType")
_DOMAIN_OBJECTS = ("ButterKnifeType", "KnifeType")
_PORTABLE = (frozenset(kind for table in PLACES.values() for kind in table) - {LAMP}) | PORTABLE_ON_FLOOR


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene and where it lies; ``name`` is what the engine calls it, e.g. ``mug 2``.

    Without a receptacle it lies at the location ``floor``: it is seen there and cannot be taken.
    """

    kind: str
    number: int
    of: int
    where: Receptacle | None
    floor: int = 0

    @property
    def location(self) -> int:
        return self.floor if self.where is None else self.where.location

    @property
    def name(self) -> str:
        return f"{self.kind.lower()} {self.number}"


def entity_id(kind: str, number: int, of: int) -> str:
    """PDDL identifier that the engine's demangler turns into ``<kind> <number>``.

    It numbers the sorted identifiers of a kind from the highest number down, and adds "basin" itself.
    """
    rank = f"{of - number:02d}"
    if kind.endswith("Basin"):
        return f"{kind.removesuffix('Basin')}_bar_{rank}_bar_{kind}"
    return f"{kind}_bar_{rank}"


def problem_text(
    name: str,
    receptacles: tuple[Receptacle, ...],
    things: tuple[Thing, ...],
    task_type: str,
    obj: str,
    target: str,
    *,
    size: str = "tiny",
    sliced: bool = False,
) -> str:
    """The PDDL problem of a scene with one goal; goal fields as in ``goals.pddl_goal``.

    Full-size problems know more places to put things, things that can be sliced, and food that is cool because it
    lies in the fridge where that gives nothing away.
    """
    lines = [f"(define (problem {name})", "(:domain alfred)", "(:objects", "agent1 - agent"]
    lines += _declarations(receptacles, things)
    lines += [")", "(:init", "(atLocation agent1 loc_bar_00)"]
    lines += _receptacle_facts(receptacles) + _thing_facts(things, slice_able=size == "full" or sliced)
    if size == "full" and task_type in ("pick_clean_then_place_in_recep", "pick_heat_then_place_in_recep"):
        lines += [f"(isCool {_thing_id(t)})" for t in things if t.kind in COOLABLE and _is_in(t, "Fridge")]
    lines += [
        f"(canContain {where}Type {kind}Type)"
        for where, kind in sorted(can_contain(size))
        if any(where == r.kind for r in receptacles) and any(kind == t.kind for t in things)
    ]
    lines += [")", f"(:goal {pddl_goal(task_type, obj, target, sliced=sliced)})", ")"]
    return "\n".join(lines) + "\n"


def _declarations(receptacles: tuple[Receptacle, ...], things: tuple[Thing, ...]) -> list[str]:
    object_types = sorted({f"{t.kind}Type" for t in things} | set(_DOMAIN_OBJECTS))
    receptacle_types = sorted({f"{r.kind}Type" for r in receptacles} | set(_DOMAIN_RECEPTACLES))
    locations = sorted({0, *(r.location for r in receptacles), *(t.location for t in things)})
    return [
        *(f"{kind} - otype" for kind in object_types),
        *(f"{kind} - rtype" for kind in receptacle_types),
        *(f"{_thing_id(t)} - object" for t in things),
        *(f"{_receptacle_id(r)} - receptacle" for r in receptacles),
        *(f"{_location(number)} - location" for number in locations),
    ]


def _receptacle_facts(receptacles: tuple[Receptacle, ...]) -> list[str]:
    facts = []
    for r in receptacles:
        rid = _receptacle_id(r)
        facts += [f"(receptacleType {rid} {r.kind}Type)", f"(receptacleAtLocation {rid} {_location(r.location)})"]
        if r.kind in OPENABLE:
            facts.append(f"(openable {rid})")
    return facts


def _thing_facts(things: tuple[Thing, ...], *, slice_able: bool) -> list[str]:
    facts = []
    for t in things:
        tid = _thing_id(t)
        facts.append(f"(objectType {tid} {t.kind}Type)")
        if t.where is not None:
            facts.append(f"(inReceptacle {tid} {_receptacle_id(t.where)})")
        facts.append(f"(objectAtLocation {tid} {_location(t.location)})")
        for fact, kinds in (
            ("pickupable", _PORTABLE),
            ("isReceptacleObject", HOLDERS),
            ("cleanable", CLEANABLE),
            ("heatable", HEATABLE),
            ("coolable", COOLABLE),
            ("toggleable", {LAMP}),
            ("sliceable", SLICEABLE if slice_able else ()),
        ):
            if t.kind in kinds:
                facts.append(f"({fact} {tid})")
    return facts


def _is_in(thing: Thing, kind: str) -> bool:
    return thing.where is not None and thing.where.kind == kind


def _receptacle_id(r: Receptacle) -> str:
    return entity_id(r.kind, r.number, r.of)


def _thing_id(t: Thing) -> str:
    return entity_id(t.kind, t.number, t.of)


def _location(number: int) -> str:
    return f"loc_bar_{number:02d}"
