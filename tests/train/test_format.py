"""The words of a run: who demands a think block, and windows that can never fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stepopsd.rollout.rows import build_rows, with_copies
from stepopsd.train.config import EnvConfig
from stepopsd.train.format import chat_of, prompting_of
from stepopsd.train.trainer import Trainer
from tests.experiments.tiny_chat import QWEN2_TEMPLATE, QWEN3_TEMPLATE, tokenizer
from tests.rollout.test_rows import dialogue
from tests.train.test_trainer import config, parameters, train

ACTION = "<action>look</action>"
REASONED = f"<think>hm</think>{ACTION}"


@pytest.mark.parametrize(
    ("template", "env", "bare_is_valid"),
    [
        (QWEN3_TEMPLATE, {"template_thinking": "off"}, True),
        (QWEN3_TEMPLATE, {"template_thinking": "off", "think_check": "always"}, False),
        (QWEN3_TEMPLATE, {"template_thinking": "on"}, False),
        (QWEN3_TEMPLATE, {}, False),
        (QWEN3_TEMPLATE, {"think": False}, True),
        (QWEN2_TEMPLATE, {"template_thinking": "off"}, False),  # the template knows no switch
    ],
)
def test_a_think_block_is_demanded_of_whoever_can_give_it(template, env, bare_is_valid):
    config = EnvConfig(**env)
    prompting = prompting_of(config, chat_of(config, tokenizer(template)))
    assert prompting.parse(ACTION).is_valid == bare_is_valid
    assert prompting.parse(REASONED).is_valid


def test_a_window_that_never_fits_is_found_before_training_starts(model, tmp_path):
    rollout = {"context": "turn", "max_prompt_tokens": 20, "max_response_tokens": 4, "groups": 4, "group_size": 4}
    run = config(tmp_path / "run", model, env={"history": 30, "max_steps": 40}, rollout=rollout)
    with pytest.raises(ValueError, match=r"env\.history=30 must fit"):
        Trainer(run)
    assert not (tmp_path / "run").exists()


def test_copies_fill_up_to_a_multiple():
    two = [replace(dialogue(), context="turn") for _ in range(2)]
    two[1].turns.pop()
    rows = build_rows(two, span="action_only")
    assert with_copies(rows, 0, "a") == rows
    filled = with_copies(rows, 4, "a")
    assert filled[:5] == rows
    assert len(filled) == 8
    assert all(copy in rows for copy in filled[5:])
    assert filled == with_copies(rows, 4, "a")
    assert with_copies(rows, 5, "a") == rows


def test_copied_rows_enter_the_update(model, tmp_path):
    rollout = {"context": "turn", "groups": 4, "group_size": 4, "max_prompt_tokens": 100, "max_response_tokens": 4}
    options = {"rollout": rollout, "credit": {"name": "stepopsd", "statistics": "row"}, "transcripts_every": 1}
    once = train(config(tmp_path / "once", model, **options))
    copied = train(config(tmp_path / "copied", model, optim={"duplicate_rows_to": 64}, **options))
    assert (parameters(once) != parameters(copied)).any()
