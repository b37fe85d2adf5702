"""ALFWorld episodes behind the environment protocol."""

from __future__ import annotations

from stepopsd.envs.alfworld.engine import Engine, EngineState
from stepopsd.envs.base import Observation, StepResult, Task

_GOAL_MARK = "Your task is to: "


class AlfworldEnv:
    """The real ALFWorld text engine, one episode at a time.

    Reward is 1.0 at the winning step and 0.0 otherwise; ``help`` is accepted but not offered. The engine draws no
    random numbers, so the seed changes nothing and an episode is fixed by its task and actions.

    Args:
        memoise: Do the engine's repeated work once; the words stay the same.

    Raises:
        ImportError: The engine is not installed; the message names the extra.

    Example:
        >>> env = AlfworldEnv()
        >>> first = env.reset(task, seed=0)
        >>> env.step(first.admissible[0]).observation.text
        'You arrive at bed 1. On the bed 1, you see a book 1, and a pillow 1.'
    """

    def __init__(self, *, memoise: bool = True) -> None:
        self.goal = ""
        self._engine = Engine(memoise=memoise)
        self._playing = False

    def reset(self, task: Task, seed: int) -> Observation:
        """Start the task's game. Raises FileNotFoundError or ValueError for a missing or broken game file."""
        self._playing = False
        state = self._engine.start(task.source)
        self.goal = goal_of(state.text, task.source)
        self._playing = True
        return _observation(state)

    def step(self, action: str) -> StepResult:
        """Play one action; what the engine does not accept is answered by "Nothing happens."."""
        if not self._playing:
            raise RuntimeError("step needs a running episode: call reset first (an episode ends with the win)")
        state = self._engine.command(action)
        self._playing = not state.won
        return StepResult(_observation(state), reward=float(state.won), done=state.won, success=state.won)

    def plan(self) -> list[str]:
        """Commands that win from here, from the planner, which sees what the agent has not looked at yet."""
        if not self._playing:
            raise RuntimeError("plan needs a running episode: call reset first")
        return self._engine.plan()

    def close(self) -> None:
        """Unload the engine."""
        self._playing = False
        self._engine.close()


def goal_of(text: str, source: str = "first observation") -> str:
    """The instruction inside a first observation; ValueError naming ``source`` when there is none."""
    _, mark, goal = text.partition(_GOAL_MARK)
    if not mark or not goal.strip():
        raise ValueError(f"{source}: the first observation states no task ({_GOAL_MARK!r} not found)")
    return goal.strip()


def _observation(state: EngineState) -> Observation:
    return Observation(state.text, tuple(command for command in state.commands if command != "help"))
