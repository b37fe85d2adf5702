"""What the teacher is told, and who gets a peer."""

from __future__ import annotations

from stepopsd.envs.base import Task
from stepopsd.rollout.records import Trajectory, Turn
from stepopsd.train.hindsight import choose_peers, render_hindsight, render_peer


def trajectory(group, member, success, actions=()):
    task = Task("t", "alfworld", "k", "train", "")
    turns = [Turn([], [], [], {}, f"you see {a}", f"<action>{a}</action>", a, True) for a in actions]
    return Trajectory(task, "goal", group, member, 0, "turn", turns, float(success), success)


def test_block_holds_only_what_is_known():
    assert render_hindsight(None, None) == ""
    assert render_hindsight(True, None) == "\n<hindsight>\nfinal_correctness: correct\n</hindsight>\n"
    both = render_hindsight(False, "1. look")
    assert "final_correctness: incorrect" in both
    assert "<peer_correct_trajectory>\n1. look\n</peer_correct_trajectory>" in both
    assert "final_correctness" not in render_hindsight(None, "1. look")


def test_peer_as_actions_or_in_full():
    peer = trajectory(0, 0, True, ["look", "take cup 1"])
    assert render_peer(peer, "actions") == "1. look\n2. take cup 1"
    assert render_peer(peer, "full").startswith("you see look\n<action>look</action>\nyou see take")


def test_only_failed_members_of_mixed_groups_get_the_first_successful_member():
    members = [
        trajectory(0, 2, True), trajectory(0, 1, True), trajectory(0, 0, False),  # mixed, out of order
        trajectory(1, 0, False), trajectory(1, 1, False),  # all failed
        trajectory(2, 0, True), trajectory(2, 1, True),  # all won
    ]  # fmt: skip
    assert choose_peers(members) == {2: 1}
