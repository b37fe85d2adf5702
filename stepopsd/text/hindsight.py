"""The hindsight block: what the teacher is told about an episode after it ended (arXiv 2605.27140, §3.1)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from stepopsd.options.methods import HindsightConfig

Tells = Literal["none", "label", "peer"]


def render_hindsight(success: bool | None, peer: str | None) -> str:
    """The block's text; empty when there is nothing to tell.

    Args:
        success: Outcome of the scored trajectory, or None to leave the label out.
        peer: Text of a successful member of the same group, see ``render_peer``, or None.

    Example:
        >>> render_hindsight(False, None)
        '\\n<hindsight>\\nfinal_correctness: incorrect\\n</hindsight>\\n'
    """
    lines = []
    if success is not None:
        lines.append(f"final_correctness: {'correct' if success else 'incorrect'}")
    if peer is not None:
        lines += ["peer_correct_trajectory:", "<peer_correct_trajectory>", peer, "</peer_correct_trajectory>"]
    if not lines:
        return ""
    return "\n".join(["", "<hindsight>", *lines, "</hindsight>", ""])


def number_actions(actions: Sequence[str]) -> str:
    """One numbered line per action."""
    return "\n".join(f"{i}. {action}" for i, action in enumerate(actions, start=1))


def first_successes(groups: Sequence[int], members: Sequence[int], successes: Sequence[bool]) -> dict[int, int]:
    """Failed members of mixed groups -> index of the group's first successful member (smallest member number).

    Groups without a success, or without a failure, give nothing.

    Args:
        groups, members, successes: One entry per episode: its group, its number in the group, its outcome.

    Example:
        >>> first_successes([7, 7, 7], [0, 1, 2], [False, True, True])
        {0: 1}
    """
    first: dict[int, int] = {}
    for i in sorted(range(len(members)), key=members.__getitem__):
        if successes[i]:
            first.setdefault(groups[i], i)
    return {i: first[g] for i, g in enumerate(groups) if not successes[i] and g in first}


def from_other_groups(peers: Mapping[int, int], groups: Sequence[int], successes: Sequence[bool]) -> dict[int, int]:
    """The same failed members, each with the first success of the next group that has one; a wrong hint on purpose.

    Groups follow each other by number, the first after the last. Without a second group that has a success nobody has
    a peer.

    Args:
        peers: From ``first_successes``.
        groups, successes: As given to it.

    Example:
        >>> from_other_groups({0: 1}, [7, 7, 9, 9], [False, True, False, True])
        {0: 3}
    """
    first: dict[int, int] = {}
    for i, group in enumerate(groups):
        if successes[i]:
            first.setdefault(group, i)
    order = sorted(first)
    if len(order) < 2:
        return {}
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return {failed: first[following[groups[failed]]] for failed in peers}


@dataclass(frozen=True, slots=True)
class Block:
    """A hindsight block as tokens.

    Attributes:
        ids: Token ids; empty when there is nothing to tell or no room to tell it.
        tells: What it holds: nothing, the outcome alone, or a peer.
        cut_tokens: Tokens that it is shorter than the whole block; 0 for a whole one.
    """

    ids: list[int]
    tells: Tells
    cut_tokens: int = 0


class BlockWriter:
    """Writes hindsight blocks that fit: what is cut is the end of the peer's text, never the frame around it.

    Numbered actions are cut after a whole line, full turns after a word. A peer of which nothing fits is left out, then
    the whole block.

    Args:
        tokenizer: Of the teacher.
        options: The ``hindsight`` section.

    Raises:
        ValueError: ``max_tokens`` has no room for the block without its peer.
    """

    def __init__(self, tokenizer: Any, options: HindsightConfig) -> None:
        self.tokenizer, self.options = tokenizer, options
        # The rows of an episode, and failed members of a group, share their block.
        self._ids = lru_cache(maxsize=1024)(self._tokenise)
        self._shortened = lru_cache(maxsize=1024)(self._shorten)
        frame = len(self._ids(render_hindsight(False if options.label else None, "" if options.peer else None)))
        if 0 < options.max_tokens < frame:
            raise ValueError(
                f"credit.hindsight.max_tokens must be 0 (no cut) or at least {frame}, the block without the peer's "
                f"text, got {options.max_tokens}"
            )

    def write(self, success: bool, peer: str | None, *, room: int) -> Block:
        """The block for an episode.

        Args:
            success: Its outcome; left out where the options have no label.
            peer: Text of a successful member of its group, or None.
            room: Tokens that the teacher's context has left.
        """
        options = self.options
        label = success if options.label else None
        text = peer
        whole = self._ids(render_hindsight(label, text))
        limit = max(0, min(options.max_tokens or room, room))
        if len(whole) <= limit:
            return Block(list(whole), _tells(label, text))
        if text is not None and (ids := self._shortened(label, text, limit)):
            return Block(list(ids), "peer", len(whole) - len(ids))
        plain = self._ids(render_hindsight(label, None))
        ids = plain if len(plain) <= limit else ()
        return Block(list(ids), _tells(label, None) if ids else "none", len(whole) - len(ids))

    def _shorten(self, label: bool | None, text: str, limit: int) -> tuple[int, ...]:
        """Ids of the block with as much of the peer's text as fits; empty when none does."""
        pieces = re.findall(r"[^\n]+\n?" if self.options.render == "actions" else r"\s*\S+", text)

        def ids(count: int) -> tuple[int, ...]:
            return self._ids(render_hindsight(label, "".join(pieces[:count]).rstrip()))

        fitting = bisect_right(range(1, len(pieces) + 1), limit, key=lambda count: len(ids(count)))
        return ids(fitting) if fitting else ()

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


def _tells(label: bool | None, text: str | None) -> Tells:
    if text is not None:
        return "peer"
    return "none" if label is None else "label"
