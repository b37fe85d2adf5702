"""The corridor: one turn decides, nothing gives the right door away, and the same start gives the same episode."""

from __future__ import annotations

import pytest

from stepopsd.envs.base import Task
from stepopsd.envs.chain import ChainEnv, chain_tasks, crossing_of, doors_of


def play(task, seed, actions):
    env = ChainEnv()
    texts = [env.reset(task, seed).text]
    for action in actions:
        result = env.step(action)
        texts.append(result.observation.text)
    return texts, result


def test_only_the_crossing_decides():
    for task in chain_tasks(5, "train", 10):
        won = {}
        for code in range(2**5):
            actions = [doors_of(i + 1)[code >> i & 1] for i in range(5)]
            texts, result = play(task, 3, actions)
            assert result.done
            won.setdefault(actions[crossing_of(task)], set()).add(result.success)
            assert [t for t in texts if "crossing" in t] == [f"room {crossing_of(task) + 1} , a crossing ."]
        assert sorted(map(sorted, won.values())) == [[False], [True]]


def test_what_is_seen_does_not_depend_on_the_right_door():
    task = chain_tasks(4, "train")[1]
    seen = {tuple(play(task, seed, ["take 1a", "take 2a", "take 3a", "take 4a"])[0]) for seed in range(20)}
    ends = {play(task, seed, ["take 1a", "take 2a", "take 3a", "take 4a"])[1].success for seed in range(20)}
    assert len(seen) == 1
    assert ends == {False, True}


def test_no_door_at_the_crossing_is_the_wrong_door():
    task = chain_tasks(3, "train")[0]
    assert crossing_of(task) == 0
    assert not play(task, 0, ["sit", "take 2a", "take 3a"])[1].success


def test_every_room_holds_the_crossing_equally_often():
    places = [crossing_of(task) for task in chain_tasks(6, "train", 60)]
    assert [places.count(i) for i in range(6)] == [10] * 6


def test_bad_input():
    with pytest.raises(ValueError, match="length must be at least 2"):
        chain_tasks(1, "train")
    with pytest.raises(ValueError, match="not a chain task"):
        ChainEnv().reset(Task("train/game", "alfworld", "", "train", ""), 0)
