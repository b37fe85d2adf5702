"""The hindsight block: what the teacher is told about an episode after it ended (arXiv 2605.27140, §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from stepopsd.rollout.records import Trajectory


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


def render_peer(peer: Trajectory, render: Literal["actions", "full"]) -> str:
    """A successful trajectory as numbered actions, or with every observation and full response."""
    if render == "actions":
        return number_actions([turn.action for turn in peer.turns])
    return "\n".join(f"{turn.observation}\n{turn.response}" for turn in peer.turns)


def number_actions(actions: Sequence[str]) -> str:
    """One numbered line per action."""
    return "\n".join(f"{i}. {action}" for i, action in enumerate(actions, start=1))


def choose_peers(trajectories: Sequence[Trajectory]) -> dict[int, int]:
    """Failed members of mixed groups -> index of the group's first successful member (smallest member number).

    Indices refer to ``trajectories``. Groups without a success, or without a failure, give no peers.
    """
    first: dict[int, int] = {}
    for i in sorted(range(len(trajectories)), key=lambda i: trajectories[i].member):
        if trajectories[i].success:
            first.setdefault(trajectories[i].group_id, i)
    return {
        i: first[t.group_id] for i, t in enumerate(trajectories) if not t.success and t.group_id in first
    }
