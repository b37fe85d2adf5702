"""An expert's episodes as the records and masks that a rollout of the same run would make."""

from __future__ import annotations

from array import array

from stepopsd.experiments.expert_play import Play
from stepopsd.experiments.sft import WeightedRow
from stepopsd.rollout.contexts import ContextPolicy, Prompting
from stepopsd.rollout.records import Trajectory, Turn
from stepopsd.rollout.rows import build_rows
from stepopsd.rollout.spans import step_spans


def trajectory_of(play: Play, context: ContextPolicy) -> Trajectory:
    """The episode as the rollout loop would have recorded it, had the policy said what the expert did.

    Log-probs are 0: nobody sampled these tokens.

    Raises:
        ValueError: The tokenizer does not keep the expert's words.
    """
    chat, prompting = context.chat, context.prompting
    assert isinstance(prompting, Prompting)  # the context of a household, not of a search
    trajectory = Trajectory(play.task, play.goal, 0, 0, 0, context.name, reward=1.0, success=True, status="success")
    conversation = context.open(play.goal, play.observations[0])
    for index, (observation, action) in enumerate(zip(play.observations, play.actions, strict=True)):
        ids = chat.response(expert_response(play.goal, action, think=prompting.think and not prompting.think_given))
        said = chat.text(ids)
        parsed = prompting.parse(said)
        if parsed.action != action or not parsed.is_valid:
            raise ValueError(
                f"{play.task.task_id}: the tokenizer does not keep the expert's response: {action!r} reads as {said!r}"
            )
        spans = step_spans(chat.tokenizer, chat.content(ids), parsed.char_span)
        zeros = [0.0] * len(ids)
        trajectory.turns.append(
            Turn(conversation.prompt_ids, ids, zeros, spans, observation.text, said, action, parsed.is_valid)
        )
        if index + 1 < len(play.actions):
            conversation.advance(ids, action, play.observations[index + 1])
    return trajectory


def expert_response(goal: str, action: str, *, think: bool) -> str:
    """What the policy should have said: the action, behind a plain reason where reasoning is asked for."""
    act = f"<action>{action}</action>"
    return f"<think>The task is to {goal.rstrip('. ')}. The next step is to {action}.</think>\n{act}" if think else act


def training_rows(play: Play, trajectory: Trajectory, *, max_tokens: int) -> tuple[list[WeightedRow], int]:
    """The trajectory's rows with weight 1 on the responses that are imitated, as a policy update would mask them.

    Returns:
        Rows with something to learn, and how many were left out because they hold more than ``max_tokens``.
    """
    rows, too_long = [], 0
    for row in build_rows([trajectory], span="action_only"):
        weights = [0.0] * len(row.input_ids)
        for turn, start in zip(row.turn_ids, row.turn_starts, strict=True):
            if play.imitated[turn]:
                end = start + len(trajectory.turns[turn].response_ids)
                weights[start:end] = [1.0] * (end - start)
        if len(row.input_ids) > max_tokens:
            too_long += 1
        elif any(weights):
            # Arrays: a hundred thousand prompts as lists would take gigabytes.
            rows.append(WeightedRow(array("i", row.input_ids), array("f", weights)))
    return rows, too_long
