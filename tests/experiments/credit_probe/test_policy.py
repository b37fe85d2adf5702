"""The probe's policy is a fair coin, and its teacher does what its name says."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stepopsd.envs.chain import chain_tasks, crossing_of
from stepopsd.experiments.credit_probe.policy import demonstration, make_policy
from stepopsd.experiments.lessons import training_row
from stepopsd.text.chat import ChatFormat

LENGTH = 5


@pytest.mark.parametrize("teacher", ["copies", "understands"])
def test_demonstrations_follow_the_peer_where_the_teacher_would(teacher):
    rng, told = random.Random(0), 0
    for task in chain_tasks(LENGTH, "demonstration") * 4:
        shown = demonstration(task, teacher, rng)
        if "<peer_correct_trajectory>" not in shown.hint:
            continue
        told += 1
        peer = [line.split(". ", 1)[1] for line in shown.hint.splitlines() if line[:1].isdigit()]
        same = [a == b for a, b in zip(shown.actions, peer, strict=True)]
        assert same[crossing_of(task)]
        assert teacher == "understands" or all(same)
    assert told > 50


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["copies", "understands"])
def test_what_it_has_learned(tmp_path, teacher):
    folder = make_policy(tmp_path / "policy", length=LENGTH, teacher=teacher)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rng = random.Random(1)
    chances = {"told": {True: [], False: []}, "not told": {True: [], False: []}}
    for task in chain_tasks(LENGTH, "demonstration"):
        shown = demonstration(task, teacher, rng)
        told = "<peer_correct_trajectory>" in shown.hint
        row = training_row(ChatFormat(tokenizer), shown, observation_weight=0.0)
        with torch.no_grad():
            logprobs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        doors = [i for i, token in enumerate(tokenizer.convert_ids_to_tokens(row.ids)) if token in DOORS]
        for turn, at in enumerate(doors[-LENGTH:]):
            if row.weights[at]:
                chance = logprobs[at - 1, row.ids[at]].exp()
                chances["told" if told else "not told"][turn == crossing_of(task)].append(float(chance))
    means = {key: {at: sum(v) / len(v) for at, v in found.items()} for key, found in chances.items()}
    assert means["told"][True] > 0.8
    assert means["told"][False] > 0.9 if teacher == "copies" else means["told"][False] < 0.65
    assert all(0.4 < chance < 0.6 for chance in means["not told"].values())


DOORS = {f" {room}{side}" for room in range(1, LENGTH + 1) for side in "ab"}
