"""Before a run: prompts with a full history window fit the context."""

from __future__ import annotations

import random
from collections.abc import Sequence

from stepopsd.envs.base import Env, Task
from stepopsd.rollout.contexts import ContextPolicy
from stepopsd.rollout.limits import Limits


def require_window(env: Env, context: ContextPolicy, limits: Limits, tasks: Sequence[Task], window: int) -> None:
    """Check that the prompts of real episodes fit ``rollout.max_prompt_tokens`` once the window is full.

    The first game of each type is played at random, the same way each time, until its prompts hold ``window`` steps
    or the episode ends. Of a dialogue, which keeps all its steps, only the opening has to fit.

    Args:
        env: Plays the games.
        context: Makes the prompts.
        limits: Bounds of an episode.
        tasks: The run's games.
        window: ``env.history``.

    Raises:
        ValueError: A prompt is too long; names the game, the tokens and how many steps would fit.

    Example:
        >>> require_window(AlfworldEnv(), context, limits, tasks, window=2)  # doctest: +SKIP
    """
    steps = min(window, limits.max_steps - 1) if context.name == "turn" else 0
    for task in {task.kind: task for task in reversed(tasks)}.values():
        shown, tokens = _first_too_long(env, context, limits, task, steps)
        if tokens is None:
            continue
        game = task.source or task.task_id
        if not shown:
            raise ValueError(
                f"rollout.max_prompt_tokens must hold the first prompt of every game, got {limits.max_prompt_tokens}"
                f" where {game} has {tokens} tokens"
            )
        raise ValueError(
            f"env.history={window} must fit rollout.max_prompt_tokens={limits.max_prompt_tokens}: with {shown} past"
            f" steps a prompt of {game} has {tokens} tokens; show at most {shown - 1}, or allow longer prompts"
        )


def _first_too_long(
    env: Env, context: ContextPolicy, limits: Limits, task: Task, steps: int
) -> tuple[int, int | None]:
    """(past steps shown, tokens) of the first prompt that does not fit; None for the tokens where all do."""
    rng = random.Random(task.task_id)
    observation = env.reset(task, 0)
    conversation = context.open(env.goal, observation)
    for shown in range(steps + 1):
        if not limits.fits(conversation.prompt_ids):
            return shown, len(conversation.prompt_ids)
        if shown == steps:
            break
        action = rng.choice(observation.admissible or ("look",))
        result = env.step(action)
        if result.done:
            break
        observation = result.observation
        conversation.advance([], action, observation)
    return steps, None
