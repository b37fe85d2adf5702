"""An episode played through somebody else's servers, and what its siblings and its teacher make of it."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace

import pytest

from stepopsd.envs.chat import Reply
from stepopsd.integrations.verl.play import load_player, play, score, shifted
from stepopsd.integrations.verl.siblings import Siblings
from stepopsd.options.methods import HindsightConfig
from stepopsd.text.hindsight import BlockWriter

TASK = {"task_id": "t"}


class Letters:
    """A tokenizer whose ids are characters."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


class Doors:
    """Wins with the third action; the action is what follows a colon."""

    is_parallel, max_turns = True, 4

    def __init__(self, doors=3):
        self.doors, self.closed = doors, False

    def open(self, task, seed):
        return f"task {task['task_id']} seed {seed}"

    def respond(self, text):
        self.doors -= 1
        at = text.find(":")
        span = None if at < 0 else (at, len(text))
        won = self.doors == 0
        return Reply(f"{self.doors} left", float(won), won, won, at >= 0, text[at + 1 :], span, {"doors": 1.0})

    def close(self):
        self.closed = True


async def encode(messages):
    return [ord(c) for c in messages[0]["content"]]


def server(*texts):
    answers = iter(texts)

    async def generate(prompt_ids):
        ids = [ord(c) for c in next(answers)]
        return SimpleNamespace(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields={"global_steps": 3})

    return generate


def played(player, *texts, limit=100):
    made = play(
        player, TASK, seed=5, encode=encode, generate=server(*texts), tokenizer=Letters(), max_prompt_tokens=limit
    )
    return asyncio.run(made)


class Teacher:
    def __init__(self):
        self.asked = []

    async def score(self, context, response):
        self.asked.append(("".join(map(chr, context)), "".join(map(chr, response))))
        return [-float(len(self.asked))] * len(response)


def test_each_call_is_a_turn_with_its_sampled_ids():
    player = Doors()
    episode = played(player, "hm:a", "b", "c:d")
    assert (episode.status, episode.success, episode.reward, episode.invalid) == ("done", True, 1.0, 1)
    assert player.closed
    assert [turn.action for turn in episode.turns] == ["a", "b", "d"]
    assert [turn.span for turn in episode.turns] == [(2, 4), None, (1, 3)]
    assert Letters().decode(episode.turns[1].prompt_ids) == "2 left"
    assert episode.turns[2].facts == {"global_steps": 3}


def test_limits_end_an_episode_and_say_which():
    assert played(Doors(9), ":a", ":b", ":c", ":d").status == "turn_limit"
    cut = played(Doors(), ":a", limit=8)
    assert (cut.status, cut.turns) == ("context_limit", [])
    assert played(Doors(), "").status == "aborted"


def test_the_block_stands_right_before_the_action_and_the_thought_stays_unscored():
    episode, teacher = played(Doors(1), "hm:go"), Teacher()
    writer = BlockWriter(Letters(), HindsightConfig())
    asyncio.run(score(episode, "1. go", teacher, writer, whole=False, max_tokens=1000))
    context, response = teacher.asked[0]
    assert response == ":go"
    assert context.startswith("task t seed 5hm\n<hindsight>\nfinal_correctness: correct")
    assert "1. go" in context
    assert math.isnan(episode.turns[0].teacher[1])
    assert episode.turns[0].teacher[2:] == [-1.0] * 3
    asyncio.run(score(episode, None, teacher, writer, whole=True, max_tokens=1000))
    assert episode.turns[0].teacher == [-2.0] * 5


def test_without_room_or_a_peer_that_is_required_nobody_is_asked():
    episode, teacher = played(Doors(1), "hm:go"), Teacher()
    asyncio.run(score(episode, None, teacher, BlockWriter(Letters(), HindsightConfig()), whole=True, max_tokens=10))
    peer_only = HindsightConfig(label=False, rows_without_peer="skip")
    asyncio.run(score(episode, None, teacher, BlockWriter(Letters(), peer_only), whole=True, max_tokens=1000))
    assert not teacher.asked
    assert len(shifted(13, episode.turns[0].teacher)) == 13 + 5


def test_a_peer_is_the_first_success_among_the_others():
    async def group():
        siblings = Siblings()
        for member, text in enumerate((None, None, "two", "three")):
            siblings.tell("p", member, 4, text)
        peers = await asyncio.gather(*(siblings.peer_of("p", member, wait_s=1) for member in range(4)))
        return peers, len(siblings)

    assert asyncio.run(group()) == (["two", "two", "three", "two"], 0)


def test_a_sibling_that_never_ends_costs_its_help_and_nothing_else():
    async def group():
        siblings = Siblings()
        siblings.tell("p", 0, 3, None)
        siblings.tell("p", 1, 3, "one")
        return await siblings.peer_of("p", 0, wait_s=0.01)

    assert asyncio.run(group()) == "one"


@pytest.mark.parametrize("place", ["nowhere", "stepopsd.envs.chat:Nothing", "no.such.module:Player"])
def test_a_player_that_is_not_there_is_named(place):
    with pytest.raises(ValueError, match=r"stepopsd\.episode\.player"):
        load_player(place, {})
