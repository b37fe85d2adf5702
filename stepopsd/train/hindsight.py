"""Episodes as a hindsight block tells them: which of a group serves as the peer, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from stepopsd.rollout.records import Trajectory
from stepopsd.text.hindsight import first_successes, from_other_groups, number_actions


def render_peer(peer: Trajectory, render: Literal["actions", "full"]) -> str:
    """A successful trajectory as numbered actions, or with every observation and full response."""
    if render == "actions":
        return number_actions([turn.action for turn in peer.turns])
    return "\n".join(f"{turn.observation}\n{turn.response}" for turn in peer.turns)


def choose_peers(trajectories: Sequence[Trajectory], peer_of: Literal["group", "other"] = "group") -> dict[int, int]:
    """Failed members of mixed groups -> index of their peer, see ``text.hindsight``.

    Indices refer to ``trajectories``; ``other`` takes the peer from another group.
    """
    groups, successes = [t.group_id for t in trajectories], [t.success for t in trajectories]
    peers = first_successes(groups, [t.member for t in trajectories], successes)
    return peers if peer_of == "group" else from_other_groups(peers, groups, successes)
