"""The probe's policy: a tiny model that takes doors at random, and follows what a hindsight block tells it.

It is trained on made-up episodes. Without a block it chooses evenly, so that every episode is a coin flip. With a
successful peer in its context it repeats the peer's doors: everywhere (``copies``, what imitation teaches), or at the
crossing alone (``understands``, what a model that knows what mattered would do).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from stepopsd.envs.base import Task
from stepopsd.envs.chain import ChainEnv, chain_tasks, crossing_of, doors_of, rooms_of
from stepopsd.envs.prompts import dialogue_followup, dialogue_opening
from stepopsd.experiments.lessons import Demonstration, training_row
from stepopsd.experiments.sft import FitConfig, fit
from stepopsd.experiments.tiny_model import TinyModelConfig, build_model, build_tokenizer, save, vocabulary
from stepopsd.text.chat import ChatFormat
from stepopsd.text.hindsight import number_actions, render_hindsight

Teacher = Literal["copies", "understands"]
#: Made-up episodes of each lesson, most of them with a block.
EPISODES: dict[Teacher, int] = {"copies": 4_000, "understands": 8_000}
SIZE = TinyModelConfig(width=64, layers=3, heads=4, mlp=192, positions=1024, fan_in=True)


def make_policy(out: Path, *, length: int, teacher: Teacher, seed: int = 0, say: Callable[[str], None] = print) -> Path:
    """Train the policy and save it with its tokenizer.

    One that is to understand learns to copy first: a peer that counts in one turn of many teaches it too rarely that
    there is something to be read.

    Args:
        out: Folder to write.
        length: Rooms of a corridor.
        teacher: What it does with a peer's episode.
        seed: Of episodes and parameters.
        say: Receives progress lines.
    """
    rng = random.Random(f"chain/{seed}")
    tasks = chain_tasks(length, "demonstration")
    lessons: list[Teacher] = ["copies"] if teacher == "copies" else ["copies", "understands"]
    shown = [[demonstration(tasks[i % len(tasks)], kind, rng) for i in range(EPISODES[kind])] for kind in lessons]
    spoken = [text for lesson in shown for d in lesson for text in (*d.messages, *d.actions)]
    told = [render_hindsight(won, number_actions(["look"] * 50)) for won in (True, False)]
    # The last line holds what prompts and templates are probed with.
    words = [*told, *spoken, "<action></action> <think></think> the end . look go"]
    tokenizer = build_tokenizer(vocabulary(words))
    chat = ChatFormat(tokenizer)
    model = build_model(tokenizer, SIZE, seed=seed)
    for lesson in shown:
        rows = [training_row(chat, d, observation_weight=0.0) for d in lesson]
        fit(model, rows, FitConfig(epochs=1.0, seed=seed), pad_id=tokenizer.pad_token_id, say=say)
    save(model, tokenizer, out)
    return out


def demonstration(task: Task, teacher: Teacher, rng: random.Random) -> Demonstration:
    """One episode of random doors, mostly with a block that was written about another such episode."""
    length, crossing = rooms_of(task), crossing_of(task)
    env = ChainEnv()
    peer = [rng.choice(doors_of(room)) for room in range(1, length + 1)]
    told, labelled = rng.random() < 0.7, rng.random() < 0.2
    actions = [rng.choice(doors_of(room)) for room in range(1, length + 1)]
    if told:
        followed = range(length) if teacher == "copies" else [crossing]
        actions = [peer[i] if i in followed else own for i, own in enumerate(actions)]
    observation = env.reset(task, 0)
    messages = [dialogue_opening(env.goal, observation, think=False, style="compact")]
    for action in actions[:-1]:
        messages.append(dialogue_followup(env.step(action).observation, think=False, style="compact"))
    hint, turn = "", -1
    if told:
        hint, turn = render_hindsight(False, number_actions(peer)), rng.choice((-1, rng.randrange(length)))
    elif labelled:
        hint, turn = render_hindsight(rng.random() < 0.5, None), rng.randrange(-1, length)
    imitated = [turn < 0 or not hint or i == turn for i in range(length)]
    return Demonstration(task.kind, messages, actions, imitated, hint, turn)
