"""What the teacher is told, and who gets a peer."""

from __future__ import annotations

import pytest

from stepopsd.envs.base import Task
from stepopsd.options.methods import HindsightConfig
from stepopsd.rollout.records import Trajectory, Turn
from stepopsd.text.hindsight import BlockWriter, render_hindsight
from stepopsd.train.hindsight import choose_peers, render_peer

ROOM = 1 << 20
PEER_ACTIONS = ["go to shelf 1", "take cup 1", "look", "go to shelf 2"]


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


def test_a_wrong_hint_is_the_success_of_the_next_group():
    members = [
        trajectory(0, 0, False), trajectory(0, 1, True),  # mixed
        trajectory(1, 0, False), trajectory(1, 1, False),  # all failed: nobody had a peer, nobody gets one
        trajectory(2, 0, True), trajectory(2, 1, True),  # all won: has one to give
        trajectory(5, 0, True), trajectory(5, 1, False),  # mixed; the next is the first
    ]  # fmt: skip
    assert choose_peers(members, "other") == {0: 4, 7: 1}
    assert choose_peers(members[:4], "other") == {}
    with pytest.raises(ValueError, match="peer_of"):
        HindsightConfig(peer_of="all")


def written(policy, own, peer, room=ROOM, **options):
    config = HindsightConfig(**options)
    told = None if peer is None else render_peer(peer, config.render)
    block = BlockWriter(policy.tokenizer, config).write(own.success, told, room=room)
    return block, policy.tokenizer.decode(block.ids)


def test_whole_block_is_the_rendered_text(policy):
    lost, won = trajectory(0, 0, False), trajectory(0, 1, True, PEER_ACTIONS)
    block, _ = written(policy, lost, won)
    text = render_hindsight(False, render_peer(won, "actions"))
    assert block.ids == policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (block.tells, block.cut_tokens) == ("peer", 0)
    assert written(policy, lost, None)[0].tells == "label"
    assert written(policy, lost, None, label=False)[0].tells == "none"
    assert written(policy, lost, None, label=False)[0].ids == []


@pytest.mark.parametrize("cap", range(8, 30, 3))
@pytest.mark.parametrize("render", ["actions", "full"])
def test_cut_blocks_fit_and_keep_their_frame(policy, cap, render):
    lost, won = trajectory(0, 0, False), trajectory(0, 1, True, PEER_ACTIONS)
    whole, _ = written(policy, lost, won, render=render)
    by_option, text = written(policy, lost, won, render=render, max_tokens=cap)
    by_room, _ = written(policy, lost, won, render=render, room=cap)
    assert by_option == by_room
    assert len(by_option.ids) <= cap
    assert by_option.cut_tokens == len(whole.ids) - len(by_option.ids)
    assert text.startswith("<hindsight>")
    assert text.endswith("</hindsight>")
    has_peer = by_option.tells == "peer"
    assert ("<peer_correct_trajectory>" in text) == ("</peer_correct_trajectory>" in text) == has_peer
    if has_peer and len(by_option.ids) < cap - 8:  # no line or word is longer than that
        assert by_option.cut_tokens == 0


def test_numbered_actions_are_cut_after_a_whole_line(policy):
    lost, won = trajectory(0, 0, False), trajectory(0, 1, True, PEER_ACTIONS)
    whole, _ = written(policy, lost, won)
    block, _ = written(policy, lost, won, max_tokens=len(whole.ids) - 1)
    text = render_hindsight(False, render_peer(trajectory(0, 1, True, PEER_ACTIONS[:3]), "actions"))
    assert block.ids == policy.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_no_room_means_no_block(policy):
    block, _ = written(policy, trajectory(0, 0, False), trajectory(0, 1, True, PEER_ACTIONS), room=3)
    assert (block.ids, block.tells) == ([], "none")
    assert block.cut_tokens > 0


def test_a_cap_below_the_frame_is_an_error(policy):
    with pytest.raises(ValueError, match=r"credit\.hindsight\.max_tokens must be 0 \(no cut\) or at least \d+.*got 5"):
        BlockWriter(policy.tokenizer, HindsightConfig(max_tokens=5))
