"""An expert's episodes on disk, one JSON object per line: text that can be read, shared and gone on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stepopsd.envs.base import Observation, Task
from stepopsd.experiments.expert_play import Play


class PlayLog:
    """Episodes of ``tasks`` in their order, as far as they have been played.

    A line holds ``task`` (its id) and ``won``; a won episode also ``goal`` and ``steps``, each with ``observation``,
    ``admissible``, ``action`` and whether it is ``imitated``.

    Args:
        path: The file; made by the first ``append``.
        tasks: What is played.

    Example:
        >>> log = PlayLog(Path("plays.jsonl"), tasks)            # doctest: +SKIP
        >>> played = log.read()                                 # doctest: +SKIP
        >>> for play in iter_plays(tasks[len(played):], **how):  # doctest: +SKIP
        ...     log.append(play)
    """

    def __init__(self, path: Path, tasks: Sequence[Task]) -> None:
        self.path, self._tasks, self._count = path, tasks, 0

    def read(self) -> list[Play | None]:
        """Everything so far, None where the episode was not won; a line that was cut short is dropped from the file.

        Raises:
            ValueError: The file is about other tasks.
        """
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(lines), encoding="utf-8")
            temporary.replace(self.path)
        self._count = len(lines)
        if len(lines) > len(self._tasks):
            raise ValueError(f"{self.path} holds {len(lines)} episodes, {len(self._tasks)} games are to be played")
        return [self._play(number, line) for number, line in enumerate(lines)]

    def append(self, play: Play | None) -> None:
        """Add the episode of the next task."""
        record = {"task": self._tasks[self._count].task_id, "won": play is not None}
        if play is not None:
            steps = zip(play.observations, play.actions, play.imitated, strict=True)
            record["goal"] = play.goal
            record["steps"] = [
                {"observation": seen.text, "admissible": seen.admissible, "action": action, "imitated": imitated}
                for seen, action, imitated in steps
            ]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._count += 1

    def _play(self, number: int, line: str) -> Play | None:
        record, task = json.loads(line), self._tasks[number]
        if record["task"] != task.task_id:
            raise ValueError(f"{self.path} line {number + 1} is about {record['task']}, not about {task.task_id}")
        if not record["won"]:
            return None
        steps = record["steps"]
        return Play(
            task,
            record["goal"],
            [Observation(step["observation"], tuple(step["admissible"])) for step in steps],
            [step["action"] for step in steps],
            [step["imitated"] for step in steps],
        )
