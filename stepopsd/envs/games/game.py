"""A game as data: what is written to ``game.tw-pddl`` and ``traj_data.json``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Game:
    """One generated game.

    Attributes:
        task_type: One of ``goals.TASK_TYPES``.
        obj: Wanted object type, e.g. ``Mug``.
        target: Receptacle type that it has to go to; the lamp type for ``look_at_obj_in_light``.
        scene: Scene number.
        size: ``tiny`` or ``full``.
        trial: Name of the trial folder.
        goal: The instruction, without full stop.
        problem: PDDL problem.
        walkthrough: Commands that win the game.
        sliced: Whether the wanted object has to be sliced first.
    """

    task_type: str
    obj: str
    target: str
    scene: int
    size: str
    trial: str
    goal: str
    problem: str
    walkthrough: tuple[str, ...]
    sliced: bool = False

    @property
    def folder(self) -> str:
        """``<task_type>-<object>-<mrecep>-<recep>-<scene>/<trial>``, as in the official data."""
        return f"{self.task_type}-{self.obj}-None-{self.target}-{self.scene}/{self.trial}"

    @property
    def content_key(self) -> str:
        """Hash of scene and goal condition, whatever the trial is called and however the goal is worded."""
        body = self.problem.partition("\n")[2]
        return hashlib.sha256(f"{self.scene}\n{body}".encode()).hexdigest()
