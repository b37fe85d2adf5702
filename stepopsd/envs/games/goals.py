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

#: more wordings, in the terse manner of the official ones; tiny games keep to the few above
PARAPHRASES: dict[str, tuple[str, ...]] = {
    "pick_and_place_simple": (
        "place a {obj} on {recep}",
        "set some {obj} in {recep}",
        "find a {obj} and leave it on {recep}",
        "take some {obj} to the {recep}",
    ),
    "look_at_obj_in_light": (
        "view some {obj} by the {recep}",
        "hold the {obj} under the {recep} and switch it on",
        "turn on the {recep} to see a {obj}",
        "find a {obj} and study it with the {recep}",
    ),
    "pick_clean_then_place_in_recep": (
        "wash a {obj} and leave it on {recep}",
        "place a washed {obj} in {recep}",
        "rinse some {obj} and set it in {recep}",
        "set some clean {obj} on {recep}",
    ),
    "pick_heat_then_place_in_recep": (
        "warm a {obj} and leave it on {recep}",
        "place a heated {obj} in {recep}",
        "warm some {obj} up and set it in {recep}",
        "set some hot {obj} on {recep}",
    ),
    "pick_cool_then_place_in_recep": (
        "chill a {obj} and leave it on {recep}",
        "place a chilled {obj} in {recep}",
        "get some {obj} cold and set it in {recep}",
        "set some cold {obj} on {recep}",
    ),
    "pick_two_obj_and_place": (
        "place two {obj} on {recep}",
        "set two {obj} in {recep}",
        "find two {obj} and leave them on {recep}",
        "take both {obj} to the {recep}",
    ),
}

#: words that give a task type away, first match wins
_SIGNS = (
    ("pick_two_obj_and_place", {"two", "both"}),
    ("pick_clean_then_place_in_recep", {"clean", "wash", "washed", "rinse"}),
    ("pick_heat_then_place_in_recep", {"heat", "heated", "hot", "warm"}),
    ("pick_cool_then_place_in_recep", {"cool", "cold", "chill", "chilled"}),
)
_SLICED = frozenset({"sliced", "slice"})
_LAMPS = frozenset({"desklamp", "floorlamp"})
_OBJECTS = (
    frozenset(kind.lower() for table in PLACES.values() for kind in table)
    | {"baseballbat", "basketball", "boots", "tennisracket", "plunger", "scrubbrush", "footstool"}
) - _LAMPS
_RECEPTACLES = frozenset(kind.lower() for table in FULL_RECEPTACLES.values() for kind in table)


__all__ = ["PARAPHRASES", "TASK_TYPES", "WORDINGS", "Goal", "goal_text", "parse_goal", "pddl_goal"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted, in the engine's lower-case names: ``obj`` brought to ``target`` (a lamp for looking).

    ``sliced`` objects have to be cut with a knife first.
    """

    task_type: str
    obj: str
    target: str
    sliced: bool = False


def goal_text(task_type: str, obj: str, target: str, wording: int, *, sliced: bool = False) -> str:
    """The goal as a sentence without full stop; ``wording`` picks one of the phrasings (modulo their number).

    Example:
        >>> goal_text("pick_two_obj_and_place", "Pen", "Desk", 0)
        'move two pen to the desk'
    """
    options = WORDINGS[task_type] + PARAPHRASES[task_type]
    named = f"sliced {obj.lower()}" if sliced else obj.lower()
    return options[wording % len(options)].format(obj=named, recep=target.lower())


def wordings(task_type: str, size: str) -> int:
    """How many phrasings games of a size draw from: the first two when tiny, all when full."""
    few = len(WORDINGS[task_type])
    return few if size == "tiny" else few + len(PARAPHRASES[task_type])


def parse_goal(text: str) -> Goal:
    """Read a goal text back: our wordings and those of the official games.

    Args:
        text: The goal sentence, with or without the engine's lead-in ``Your task is to:``.

    Raises:
        ValueError: if no known object or no known place is named.

    Example:
        >>> parse_goal("Your task is to: heat some egg and put it in fridge.")
        Goal(task_type='pick_heat_then_place_in_recep', obj='egg', target='fridge', sliced=False)
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
    return Goal(_task_type(words, lamp is not None, target), obj, target, not _SLICED.isdisjoint(words))


def _task_type(words: list[str], has_lamp: bool, target: str) -> str:
    if has_lamp:
        return "look_at_obj_in_light"
    spoken = set(words) - {target}
    for task_type, signs in _SIGNS:
        if signs & spoken:
            return task_type
    return "pick_and_place_simple"


def pddl_goal(task_type: str, obj: str, target: str, *, sliced: bool = False) -> str:
    """The goal condition in PDDL.

    Args:
        task_type: One of ``TASK_TYPES``.
        obj: Object type, e.g. ``Mug``.
        target: Receptacle type, or the lamp type for ``look_at_obj_in_light``.
        sliced: Whether the object has to be sliced; not for ``look_at_obj_in_light``.
    """
    if task_type == "look_at_obj_in_light":
        return (
            f"(and (exists (?t - object ?r - receptacle ?a - agent ?l - location)"
            f" (and (objectType ?t {target}Type) (toggleable ?t) (isToggled ?t)"
            f" (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?t ?r)))"
            f" (exists (?o - object ?a - agent) (and (objectType ?o {obj}Type) (holds ?a ?o))))"
        )
    placed = f"(objectType {{o}} {obj}Type) (receptacleType ?r {target}Type) (inReceptacle {{o}} ?r)"
    placed += " (sliceable {o}) (isSliced {o})" if sliced else ""
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
