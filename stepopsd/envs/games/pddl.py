"""Writing a scene as a PDDL problem for alfworld's domain."""

from __future__ import annotations

from dataclasses import dataclass

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
    can_contain,
)

#: types that the domain's actions name, so every problem has to declare them
_DOMAIN_RECEPTACLES = ("FridgeType", "MicrowaveType", "SinkBasinType", "SinkType")
_DOMAIN_OBJECTS = ("ButterKnifeType", "KnifeType")
_PORTABLE = frozenset(kind for table in PLACES.values() for kind in table) - {LAMP}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene and where it lies; ``name`` is what the engine calls it, e.g. ``mug 2``."""

    kind: str
    number: int
    of: int
    where: Receptacle

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
) -> str:
    """The PDDL problem of a scene with one goal; goal fields as in ``goals.pddl_goal``."""
    lines = [f"(define (problem {name})", "(:domain alfred)", "(:objects", "agent1 - agent"]
    lines += _declarations(receptacles, things)
    lines += [")", "(:init", "(atLocation agent1 loc_bar_00)"]
    lines += _receptacle_facts(receptacles) + _thing_facts(things)
    lines += [
        f"(canContain {where}Type {kind}Type)"
        for where, kind in sorted(can_contain())
        if any(where == r.kind for r in receptacles) and any(kind == t.kind for t in things)
    ]
    lines += [")", f"(:goal {pddl_goal(task_type, obj, target)})", ")"]
    return "\n".join(lines) + "\n"


def _declarations(receptacles: tuple[Receptacle, ...], things: tuple[Thing, ...]) -> list[str]:
    object_types = sorted({f"{t.kind}Type" for t in things} | set(_DOMAIN_OBJECTS))
    receptacle_types = sorted({f"{r.kind}Type" for r in receptacles} | set(_DOMAIN_RECEPTACLES))
    return [
        *(f"{kind} - otype" for kind in object_types),
        *(f"{kind} - rtype" for kind in receptacle_types),
        *(f"{_thing_id(t)} - object" for t in things),
        *(f"{_receptacle_id(r)} - receptacle" for r in receptacles),
        *(f"{_location(number)} - location" for number in range(len(receptacles) + 1)),
    ]


def _receptacle_facts(receptacles: tuple[Receptacle, ...]) -> list[str]:
    facts = []
    for r in receptacles:
        rid = _receptacle_id(r)
        facts += [f"(receptacleType {rid} {r.kind}Type)", f"(receptacleAtLocation {rid} {_location(r.location)})"]
        if r.kind in OPENABLE:
            facts.append(f"(openable {rid})")
    return facts


def _thing_facts(things: tuple[Thing, ...]) -> list[str]:
    facts = []
    for t in things:
        tid = _thing_id(t)
        facts += [
            f"(objectType {tid} {t.kind}Type)",
            f"(inReceptacle {tid} {_receptacle_id(t.where)})",
            f"(objectAtLocation {tid} {_location(t.where.location)})",
        ]
        for fact, kinds in (
            ("pickupable", _PORTABLE),
            ("isReceptacleObject", HOLDERS),
            ("cleanable", CLEANABLE),
            ("heatable", HEATABLE),
            ("coolable", COOLABLE),
            ("toggleable", {LAMP}),
        ):
            if t.kind in kinds:
                facts.append(f"({fact} {tid})")
    return facts


def _receptacle_id(r: Receptacle) -> str:
    return entity_id(r.kind, r.number, r.of)


def _thing_id(t: Thing) -> str:
    return entity_id(t.kind, t.number, t.of)


def _location(number: int) -> str:
    return f"loc_bar_{number:02d}"
