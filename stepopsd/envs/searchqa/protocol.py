"""The tags: what the policy may write, how passages are shown to it, and the words around both.

The policy thinks in ``<think>``, then asks in ``<search>`` or ends the episode in ``<answer>``; passages come back in
``<information>``. Tags as in Search-R1 (arXiv 2503.09516); the wording is ours. No model and no tokenizer here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stepopsd.envs.base import Observation
from stepopsd.envs.prompts import STYLES, ParsedAction, Style

_BLOCK = re.compile(
    r"<(search|answer)>((?:(?!</?(?:search|answer)>).)*)</\1>", re.DOTALL | re.IGNORECASE | re.ASCII
)
#: Whatever could be one of our tags, markup, or the opening of a chat template's control token.
_TAG = re.compile(r"<(?=[/|]?[A-Za-z_|])")


@dataclass(frozen=True, slots=True)
class SearchObservation(Observation):
    """What a search brought, in parts, so that a context can leave whole passages out.

    Attributes:
        passages: Rendered passages without tags of ours, best first.
        note: What the environment has to say beside them; stands after the block.
    """

    passages: tuple[str, ...] = ()
    note: str = ""


def observe(passages: Sequence[str], note: str = "") -> SearchObservation:
    """An observation that shows all of these passages."""
    return SearchObservation(information(passages, note), passages=tuple(passages), note=note)


def information(passages: Sequence[str], note: str = "") -> str:
    """The block as the policy reads it, always closed; without passages the note alone."""
    block = "\n".join(["<information>", *passages, "</information>"]) if passages else ""
    return "\n".join(part for part in (block, note) if part)


def render_passage(number: int, title: str, text: str) -> str:
    """One passage on one line; it can neither open nor close a tag, nor end a message."""
    head = f"{title.strip()}: " if title.strip() else ""
    return neutral(f"[{number}] {head}{' '.join(text.split())}")


def neutral(text: str) -> str:
    """Foreign text with a space after every ``<`` that could begin a tag or a control token."""
    return _TAG.sub("< ", text)


def parse_response(response: str, *, stop_at_action: bool = False) -> ParsedAction:
    """Read one action out of the policy's own text.

    The action is the first complete search or answer block, tags in any case; ``action`` holds it with its tags and
    single spaces, or is empty. A response without one is invalid, as is a blank query or answer. Tags of one kind
    never reach over another's, so an unclosed tag costs nothing but itself.

    Args:
        response: The policy's text of this turn and nothing else.
        stop_at_action: What follows the action is cut, as if a stop string had ended the call. Without it, a second
            block makes the response invalid; the first one is played all the same.

    Example:
        >>> parse_response("<think>who?</think><search> author of Emma </search>").action
        '<search>author of Emma</search>'
    """
    blocks = list(_BLOCK.finditer(response))
    if not blocks:
        return ParsedAction("", False, "no <search> or <answer> block", None)
    kind, content = blocks[0].group(1).lower(), " ".join(blocks[0].group(2).split())
    reason = ""
    if not content:
        reason = f"blank <{kind}> block"
    elif len(blocks) > 1 and not stop_at_action:
        reason = "more than one action"
    return ParsedAction(
        f"<{kind}>{content}</{kind}>", not reason, reason, blocks[0].span(),
        is_answer=kind == "answer", stops=stop_at_action,
    )  # fmt: skip


def split_action(action: str) -> tuple[str, str]:
    """(``search`` or ``answer``, its text); two empty texts for anything else, as for a response without a block."""
    block = _BLOCK.fullmatch(action)
    return (block.group(1).lower(), block.group(2).strip()) if block else ("", "")


@dataclass(frozen=True, slots=True)
class SearchPrompting:
    """The words around the environment, with their settings bound.

    Attributes:
        window: Past steps shown in a prompt that stands on its own.
        think: Ask for reasoning before the action. A response without it is valid all the same.
        style: ``full`` sentences, or ``compact`` for tiny models.
        stop_at_action: See ``parse_response``.
    """

    window: int = 4
    think: bool = True
    style: Style = "full"
    stop_at_action: bool = True

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {self.style!r}")

    def parse(self, response: str) -> ParsedAction:
        return parse_response(response, stop_at_action=self.stop_at_action)

    def opening(self, question: str) -> str:
        """The first user message of an episode."""
        if self.style == "compact":
            return f"question : {neutral(question)}"
        return "\n\n".join([_TASK, f"Question: {neutral(question)}", self._instruction()])

    def turn(self, question: str, steps: Sequence[tuple[str, str]], first: int = 1) -> str:
        """A user message that stands on its own.

        Args:
            steps: (action, what came back) of the steps to show, oldest first; none gives the opening.
            first: Number of the first shown step.
        """
        taken = first + len(steps) - 1
        if not taken:
            return self.opening(question)
        if self.style == "compact":
            return "\n".join([self.opening(question), *(f"{_own(action)}\n{seen}" for action, seen in steps)])
        past = "\n\n".join(f"Step {n}: {_own(action)}\n{seen}" for n, (action, seen) in enumerate(steps, first))
        told = f"Steps taken so far: {taken}." + (f" What you did and what came back:\n\n{past}" if steps else "")
        return "\n\n".join([_TASK, f"Question: {neutral(question)}", told, self._instruction()])

    def followup(self, seen: str) -> str:
        """A later user message of a dialogue; the question and the rules stand at its beginning."""
        return seen

    def _instruction(self) -> str:
        choose = (
            "Then do one of two things. If something is missing, write one short search query between <search> and "
            "</search>; the best passages come back between <information> and </information>. If you know enough, "
            "write the answer alone, in as few words as possible, between <answer> and </answer>, for example "
            "<answer>Ada Lovelace</answer>."
        )
        if not self.think:
            return choose.removeprefix("Then do").replace(" one of", "Do one of", 1)
        return f"First reason between <think> and </think> about what you know and what is missing. {choose}"


_TASK = "Answer a question. A search engine over an encyclopedia is at your service."


def _own(action: str) -> str:
    """A past action of the policy inside a later prompt: its own tags stay, whatever else looks like one does not."""
    kind, content = split_action(action)
    return f"<{kind}>{neutral(content)}</{kind}>" if kind else "(no search and no answer)"
