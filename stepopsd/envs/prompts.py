"""What a policy reads and how its answer becomes an action; no model and no tokenizer here.

Two forms of a conversation: one self-contained prompt per turn with a window of past steps (the protocol of
verl-agent), or one growing dialogue. Both come in the full wording and, for tiny word-level models, a compact one.
Source: protocol of verl-agent's ALFWorld environment; the wording is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepopsd.envs.base import Observation

Style = Literal["full", "compact"]
STYLES = ("full", "compact")
#: Characters of a response without action tags that are sent to the environment all the same.
FALLBACK_CHARACTERS = 30

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
#: Our tags, and the opening of the control tokens that most chat templates use.
_TAG = re.compile(r"<(/?action>|/?think>|\|)", re.IGNORECASE)
_CHINESE = re.compile("[\u4e00-\u9fff]")
_BANNER = re.compile(r"^-=.*=-\s*")


@dataclass(frozen=True, slots=True)
class ParsedAction:
    """A response read as an action.

    Attributes:
        action: What to send to the environment: lower case, trimmed; not checked against the admissible actions.
        is_valid: The response kept the format.
        reason: Why not, empty when valid.
        char_span: Half-open range of the action block in the response, tags included; None without a block.
        is_answer: The action ends the episode with an answer of the policy's own.
        stops: The response ends with its action: what was sampled after it is dropped, as with a stop string.
    """

    action: str
    is_valid: bool
    reason: str
    char_span: tuple[int, int] | None
    is_answer: bool = False
    stops: bool = False


def parse_action(response: str, *, think: bool) -> ParsedAction:
    """Read the action out of a response.

    The action is what stands between the first ``<action>`` and the first ``</action>`` after it, in lower case.
    Without such a block the last 30 characters are sent and the response is invalid. It is also invalid when
    ``think`` asks for ``<think></think>`` and they are missing, and when it holds Chinese characters.

    Example:
        >>> parse_action("<think>warm it</think><action>Go to microwave 1</action>", think=True).action
        'go to microwave 1'
    """
    lowered = _ascii_lower(response)
    block = _ACTION.search(lowered)
    if block is None:
        return ParsedAction(lowered[-FALLBACK_CHARACTERS:].strip().lower(), False, "no <action></action> block", None)
    reason = ""
    if think and not ("<think>" in lowered and "</think>" in lowered):
        reason = "no <think></think> block"
    elif _CHINESE.search(response):
        reason = "Chinese characters"
    return ParsedAction(block.group(1).strip().lower(), not reason, reason, block.span())


def turn_prompt(
    goal: str,
    history: Sequence[tuple[str, str]],
    observation: Observation,
    step: int,
    *,
    window: int,
    think: bool,
    style: Style = "full",
) -> str:
    """The user message of one turn that stands on its own.

    Args:
        goal: The instruction of the episode.
        history: All past (observation text, action) pairs, oldest first; the last ``window`` are shown.
        observation: What the agent sees now.
        step: Actions taken so far; 0 gives the opening.
        window: How many past steps to show.
        think: Ask for reasoning before the action.
        style: Wording.
    """
    if step == 0:
        return dialogue_opening(goal, observation, think=think, style=style)
    shown = list(history[-window:]) if window else []
    first = len(history) - len(shown) + 1
    if _compact(style):
        lines = [f"task : {neutral(goal)}"]
        lines += [f"{_body(text)}\n<action>{neutral(action)}</action>" for text, action in shown]
        return "\n".join([*lines, _body(observation.text)])
    past = "\n".join(
        f"step {number}: you saw \"{_body(text)}\" and chose \"{neutral(action)}\""
        for number, (text, action) in enumerate(shown, first)
    )
    parts = [
        "You control an agent in a household that is described in text (ALFRED).",
        f"Your task: {neutral(goal)}",
        f"You have taken {step} step{'s' * (step != 1)} so far."
        + (f" The last {len(shown)} with what you saw before each:\n{past}" if shown else ""),
        f"This is step {step + 1}. You see now:\n{_body(observation.text)}",
        _choices(observation),
        _instruction(think),
    ]
    return "\n\n".join(part for part in parts if part)


def dialogue_opening(goal: str, observation: Observation, *, think: bool, style: Style = "full") -> str:
    """The first user message of an episode."""
    if _compact(style):
        return f"task : {neutral(goal)}\n{_body(observation.text)}"
    parts = [
        "You control an agent in a household that is described in text (ALFRED).",
        f"Your task: {neutral(goal)}",
        f"You see:\n{_body(observation.text)}",
        _choices(observation),
        _instruction(think),
    ]
    return "\n\n".join(part for part in parts if part)


def dialogue_followup(observation: Observation, *, think: bool, style: Style = "full") -> str:
    """A later user message of a dialogue, where the model still sees all that came before."""
    if _compact(style):
        return _body(observation.text)
    parts = [f"You see:\n{_body(observation.text)}", _choices(observation), _instruction(think)]
    return "\n\n".join(part for part in parts if part)


def neutral(text: str) -> str:
    """Environment text without our tags or control tokens, so that it can neither act nor end a message."""
    return _TAG.sub(r"< \1", text)


def _body(text: str) -> str:
    """Observation without the engine's banner and without the task, which every prompt states itself."""
    return neutral(_BANNER.sub("", text.strip()).partition("Your task is to: ")[0].strip())


def _choices(observation: Observation) -> str:
    if not observation.admissible:
        return ""
    return "Actions that you can take now:\n" + "\n".join(f"'{neutral(action)}'" for action in observation.admissible)


def _instruction(think: bool) -> str:
    act = "Choose exactly one of the actions above and write it between <action> and </action>."
    if not think:
        return act
    return (
        "First reason step by step about where you stand and what to do next, between <think> and </think>. "
        "Then choose exactly one of the actions above and write it between <action> and </action>."
    )


def _compact(style: Style) -> bool:
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    return style == "compact"


def _ascii_lower(text: str) -> str:
    """Lower case of A-Z only, so that positions stay those of ``text`` (some capitals become two characters)."""
    return text.translate(_ASCII_LOWER)


_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
