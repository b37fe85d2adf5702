"""Published results on the two environments, each with how it was scored: shown beside a study's own, not mixed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: ALFWorld's task types as tables order them; the names of Search-QA's sets as the environment writes them.
ALFWORLD = (
    "pick_and_place_simple", "look_at_obj_in_light", "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep", "pick_cool_then_place_in_recep", "pick_two_obj_and_place", "all",
)  # fmt: skip
SEARCHQA = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "macro")
#: Key of the plain mean over sets; ``all`` is the mean over games or questions.
AVERAGE = "macro"

SCORED = {
    "a": (
        "One draw of 128 games, sampled at temperature 0.4, mostly the best or nearly the best of some thirty "
        "evaluations: a standard error of about 3 points overall and 5 to 17 per task type, a maximum over noise on "
        "top."
    ),
    "b": (
        "Single cells that a paper names as the best of its table, from different runs: each rests on about twenty "
        "games of one draw of 128, and no row of one run is known."
    ),
    "c": (
        "Greedy, exact match; the printed figure of a set is the plain mean over validation batches of 512, so that "
        "Bamboogle's 125 questions count as the mean of 124 and the last one by half each. In brackets: that undone. "
        "Average: plain mean over the seven sets."
    ),
    "d": "Greedy, exact match, every question alike. Average: plain mean over the seven sets.",
    "e": "An average that may be over sets or over questions; it is not known which.",
}


@dataclass(frozen=True, slots=True)
class Published:
    """One row of a published table.

    Attributes:
        source: Paper that printed it; the arXiv number where known.
        model: What was trained.
        method: As the paper calls it.
        values: Task type or set -> per cent; ``all`` is the total over games, ``macro`` the mean over sets.
        scored: Keys of ``SCORED``.
        corrected: The same for figures whose scoring can be undone.
    """

    source: str
    model: str
    method: str
    values: dict[str, float]
    scored: str
    corrected: dict[str, float] | None = None


_SDAR, _PAPER, _RERUN = "SDAR, arXiv 2605.15155", "StepOPSD, arXiv 2605.27140", "re-run by UniOPSD"
_SMALL, _LARGE = "Qwen3-1.7B", "Qwen2.5-3B-Instruct"


def published(environment: str) -> list[Published]:
    """Rows of the tables that StepOPSD is compared in.

    Args:
        environment: ``alfworld`` or ``searchqa``; others have none.
    """
    return {"alfworld": _alfworld, "searchqa": _searchqa}.get(environment, list)()


def _alfworld() -> list[Published]:
    rows = [
        (_SDAR, _SMALL, "untrained", (25.0, 22.2, 3.1, 0.0, 21.4, 4.2, 12.5)),
        (_SDAR, _SMALL, "GRPO", (71.1, 41.7, 36.4, 40.0, 31.8, 31.6, 46.1)),
        (_SDAR, _SMALL, "GRPO + OPSD", (38.2, 50.0, 30.8, 28.6, 30.0, 21.1, 32.0)),
        (_SDAR, _SMALL, "RLSD", (50.0, 37.5, 61.5, 19.0, 50.0, 21.1, 42.2)),
        (_SDAR, _SMALL, "SDAR", (73.5, 25.0, 76.9, 33.3, 40.0, 36.8, 53.9)),
        (_SDAR, _LARGE, "untrained", (44.4, 11.1, 6.2, 15.4, 28.6, 12.5, 21.9)),
        (_SDAR, _LARGE, "GRPO", (91.2, 62.5, 96.2, 61.9, 65.0, 47.4, 75.0)),
        (_SDAR, _LARGE, "GRPO + OPSD", (100.0, 82.4, 85.7, 75.0, 70.0, 60.0, 81.2)),
        (_SDAR, _LARGE, "RLSD", (87.9, 75.0, 90.9, 75.0, 73.1, 68.4, 79.7)),
        (_SDAR, _LARGE, "SDAR", (97.1, 62.5, 100.0, 61.9, 75.0, 84.2, 84.4)),
        (_RERUN, _LARGE, "StepOPSD", (82.4, 66.7, 82.6, 52.2, 73.7, 75.0, 73.4)),
    ]
    found = [Published(*row[:3], _named(ALFWORLD, row[3]), "a") for row in rows]
    heat, cool, two = ALFWORLD[3:6]
    best = {heat: 79.1, cool: 78.9, two: 95.0, "all": 83.6}
    return [*found, Published(_PAPER, _LARGE, "StepOPSD, best cells", best, "b")]


def _searchqa() -> list[Published]:
    rows = [
        (_SDAR, _SMALL, "untrained", (29.4, 46.9, 37.0, 23.5, 19.6, 6.4, 10.5, 24.8), (20.8, 26.2)),
        (_SDAR, _SMALL, "GRPO", (40.0, 58.9, 43.5, 35.4, 30.3, 12.0, 65.7, 40.8), (32.0, 36.0)),
        (_SDAR, _SMALL, "GRPO + OPSD", (40.7, 58.9, 45.0, 37.0, 34.6, 13.3, 65.7, 42.2), (32.0, 37.4)),
        (_SDAR, _SMALL, "RLSD", (38.6, 57.3, 43.0, 34.5, 34.1, 11.5, 65.3, 40.6), (31.2, 35.7)),
        (_SDAR, _SMALL, "SDAR", (39.7, 58.9, 45.3, 35.9, 35.5, 12.6, 65.3, 41.9), (31.2, 37.0)),
        (_SDAR, _LARGE, "untrained", (24.6, 48.1, 31.0, 26.3, 25.3, 7.2, 59.7, 31.7), (20.0, 26.1)),
        (_SDAR, _LARGE, "GRPO + OPSD", (44.9, 61.2, 45.2, 40.4, 38.5, 16.0, 66.1, 44.6), (32.8, 39.9)),
        (_SDAR, _LARGE, "RLSD", (41.5, 58.6, 42.3, 40.4, 40.2, 16.8, 66.9, 43.8), (34.4, 39.2)),
        (_SDAR, _LARGE, "SDAR", (44.8, 58.1, 44.3, 38.6, 36.2, 15.7, 66.1, 43.4), (32.8, 38.6)),
        (_RERUN, _LARGE, "StepOPSD", (43.6, 61.2, 43.8, 39.2, 38.1, 15.8, 64.5, 43.7), (29.6, 38.8)),
    ]
    found = [
        Published(*row[:3], _named(SEARCHQA, row[3]), "c", _named(("bamboogle", AVERAGE), row[4]))
        for row in rows
    ]
    grpo = (39.3, 60.6, 41.1, 37.4, 34.6, 15.4, 26.4, 36.4)
    found.insert(6, Published(_SDAR, _LARGE, "GRPO", _named(SEARCHQA, grpo), "d"))
    best = {"triviaqa": 61.6, "hotpotqa": 40.4, AVERAGE: 45.7}
    return [*found, Published(_PAPER, _LARGE, "StepOPSD, best cells", best, "be")]


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return dict(zip(names, values, strict=True))
