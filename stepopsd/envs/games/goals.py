"""Goals: the six task types, how we word them, and how a goal text is read back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stepopsd.envs.alfworld.games import TASK_TYPES
from stepopsd.envs.games.rooms import FULL_RECEPTACLES, PLACES

WORDINGS: dict[str, tuple[str, ...]] = {
    "pick_and_place_simple": ("move a {obj} to the {recep}", "bring one {obj} over to the {recep}"),
    "look_at_obj_in_light": (
        "inspect a {obj} by the light of the {recep}",
        "hold a {obj} next to the lit {recep}",
    ),
    "pick_clean_then_place_in_recep": (
        "clean one {obj} and then move it to the {recep}",
        "bring a clean {obj} to the {recep}",
    ),
    "pick_heat_then_place_in_recep": (
        "heat one {obj} and then move it to the {recep}",
        "bring a hot {obj} to the {recep}",
    ),
    "pick_cool_then_place_in_recep": (
        "cool one {obj} and then move it to the {recep}",
        "bring a cool {obj} to the {recep}",
    ),
    "pick_two_obj_and_place": (
        "move two {obj} to the {recep}",
        "find two {obj} and bring both to the {recep}",
    ),
}

#: words that give a task type away, first match wins
_SIGNS = (
    ("pick_two_obj_and_place", {"two", "both"}),
    ("pick_clean_then_place_in_recep", {"clean", "wash", "rinse"}),
    ("pick_heat_then_place_in_recep", {"heat", "hot", "warm"}),
    ("pick_cool_then_place_in_recep", {"cool", "cold", "chill"}),
)
_LAMPS = frozenset({"desklamp", "floorlamp"})
_OBJECTS = (
    frozenset(kind.lower() for table in PLACES.values() for kind in table)
    | {"baseballbat", "basketball", "boots", "tennisracket", "plunger", "scrubbrush", "footstool"}
) - _LAMPS
_RECEPTACLES = frozenset(kind.lower() for table in FULL_RECEPTACLES.values() for kind in table)


__all__ = ["TASK_TYPES", "WORDINGS", "Goal", "goal_text", "parse_goal", "pddl_goal"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted, in the engine's lower-case names: ``obj`` brought to ``target`` (a lamp for looking)."""

    task_type: str
    obj: str
    target: str


def goal_text(task_type: str, obj: str, target: str, wording: int) -> str:
    """The goal as a sentence without full stop; ``wording`` picks one of the phrasings (modulo their number).

    Example:
        >>> goal_text("pick_two_obj_and_place", "Pen", "Desk", 0)
        'move two pen to the desk'
    """
    options = WORDINGS[task_type]
    return options[wording % len(options)].format(obj=obj.lower(), recep=target.lower())


def parse_goal(text: str) -> Goal:
    """Read a goal text back: our wordings and those of the official games.

    Args:
        text: The goal sentence, with or without the engine's lead-in ``Your task is to:``.

    Raises:
        ValueError: if no known object or no known place is named.

    Example:
        >>> parse_goal("Your task is to: heat some egg and put it in fridge.")
        Goal(task_type='pick_heat_then_place_in_recep', obj='egg', target='fridge')
    """
    sentence = text.lower().rpartition("your task is to:")[2]
    words = re.findall(r"[a-z]+", sentence)
    obj = next((word for word in words if word in _OBJECTS), None)
    lamp = next((word for word in words if word in _LAMPS), None)
    places = [word for word in words if word in _RECEPTACLES]
    target = lamp or (places[-1] if places else None)
    if obj is None or target is None:
        missing = "object" if obj is None else "receptacle or lamp"
        raise ValueError(f"goal must name a known {missing}, got {text!r}")
    return Goal(_task_type(words, lamp is not None, target), obj, target)


def _task_type(words: list[str], has_lamp: bool, target: str) -> str:
    if has_lamp:
        return "look_at_obj_in_light"
    spoken = set(words) - {target}
    for task_type, signs in _SIGNS:
        if signs & spoken:
            return task_type
    return "pick_and_place_simple"


def pddl_goal(task_type: str, obj: str, target: str) -> str:
    """The goal condition in PDDL.

    Args:
        task_type: One of ``TASK_TYPES``.
        obj: Object type, e.g. ``Mug``.
        target: Receptacle type, or the lamp type for ``look_at_obj_in_light``.
    """
    if task_type == "look_at_obj_in_light":
        return (
            f"(and (exists (?t - object ?r - receptacle ?a - agent ?l - location)"
            f" (and (objectType ?t {target}Type) (toggleable ?t) (isToggled ?t)"
            f" (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?t ?r)))"
            f" (exists (?o - object ?a - agent) (and (objectType ?o {obj}Type) (holds ?a ?o))))"
        )
    placed = f"(objectType {{o}} {obj}Type) (receptacleType ?r {target}Type) (inReceptacle {{o}} ?r)"
    if task_type == "pick_two_obj_and_place":
        first, second = placed.format(o="?o1"), placed.format(o="?o2")
        return (
            f"(and (exists (?r - receptacle) (exists (?o1 - object) (and {first}"
            f" (exists (?o2 - object) (and (not (= ?o1 ?o2)) {second}))))))"
        )
    state = {
        "pick_and_place_simple": "",
        "pick_clean_then_place_in_recep": " (cleanable ?o) (isClean ?o)",
        "pick_heat_then_place_in_recep": " (heatable ?o) (isHot ?o)",
        "pick_cool_then_place_in_recep": " (coolable ?o) (isCool ?o)",
    }[task_type]
    return f"(and (exists (?r - receptacle) (exists (?o - object) (and {placed.format(o='?o')}{state}))))"
