"""An expert's episodes as records of a rollout, and what a model makes of them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
import torch

from stepopsd import cli
from stepopsd.envs.alfworld import AlfworldEnv
from stepopsd.envs.games.bundle import bundled_tasks
from stepopsd.experiments import expert_play
from stepopsd.experiments.expert_play import iter_plays, play_expert
from stepopsd.experiments.expert_rows import expert_response, training_rows, trajectory_of
from stepopsd.experiments.expert_sft import SftConfig, warm_start_on_expert
from stepopsd.experiments.fit_state import FitState
from stepopsd.experiments.play_log import PlayLog
from stepopsd.rollout.contexts import DialogueContext, TurnContext
from stepopsd.rollout.rows import build_rows
from stepopsd.text.chat import decode
from stepopsd.train.config import EnvConfig, ModelConfig, RolloutConfig, RunConfig
from stepopsd.train.format import chat_of, prompting_of
from stepopsd.train.policy import load_policy
from tests.experiments.lost_player import dies
from tests.experiments.tiny_chat import QWEN2_TEMPLATE, QWEN3_TEMPLATE, save_tiny, tokenizer

TASKS = bundled_tasks("train")[:3]
LAYOUTS = {"turn": TurnContext, "dialogue": DialogueContext}


def context(layout="turn", template=QWEN2_TEMPLATE, **env):
    env = EnvConfig(**env)
    chat = chat_of(env, tokenizer(template))
    return LAYOUTS[layout](chat, prompting_of(env, chat))


def play(expert="hand", noise=0.0, seed=0):
    return play_expert(AlfworldEnv(), TASKS[0], random.Random(seed), expert=expert, noise=noise, max_steps=50)


@pytest.mark.parametrize("expert", ["hand", "planner"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_played_actions_win_when_they_are_played_again(expert, noise):
    found = play(expert, noise, seed=3)
    env = AlfworldEnv()
    seen = env.reset(TASKS[0], 0)
    for expected, action in zip(found.observations, found.actions, strict=True):
        assert seen == expected
        result = env.step(action)
        seen = result.observation
    assert result.success
    assert all(found.imitated) == (noise == 0.0)


def test_players_start_without_torch():
    code = "import sys, stepopsd.experiments.expert_play; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_workers_change_nothing():
    settings = {"expert": "hand", "noise": 0.2, "max_steps": 50, "seed": 1}
    assert list(iter_plays(TASKS, **settings)) == list(iter_plays(TASKS, **settings, workers=2))


@pytest.mark.parametrize("layout", ["turn", "dialogue"])
def test_prompts_are_those_of_a_rollout(layout):
    where = context(layout)
    found = play()
    trajectory = trajectory_of(found, where)
    talk = where.open(found.goal, found.observations[0])
    for index, turn in enumerate(trajectory.turns):
        assert turn.prompt_ids == talk.prompt_ids
        assert (turn.action, turn.is_valid) == (found.actions[index], True)
        assert decode(where.chat.tokenizer, turn.response_ids).endswith("</action><|im_end|>")
        start, end = turn.spans["action_only"]
        action = decode(where.chat.tokenizer, turn.response_ids[start:end])
        assert action == f"<action>{found.actions[index]}</action>"
        if index + 1 < len(found.actions):
            talk.advance(turn.response_ids, turn.action, found.observations[index + 1])


@pytest.mark.parametrize("layout", ["turn", "dialogue"])
def test_loss_lies_on_imitated_responses_and_nowhere_else(layout):
    found = play(noise=0.4, seed=3)
    assert not all(found.imitated)
    trajectory = trajectory_of(found, context(layout))
    rows, too_long = training_rows(found, trajectory, max_tokens=1 << 20)
    assert too_long == 0
    learned = sum(sum(row.weights) for row in rows)
    assert learned == sum(len(t.response_ids) for t, own in zip(trajectory.turns, found.imitated, strict=True) if own)
    masks = {tuple(row.input_ids): row.response_mask for row in build_rows([trajectory], span="action_only")}
    for row in rows:
        mask = masks[tuple(row.ids)]
        assert all(own or not weight for own, weight in zip(mask, row.weights, strict=True))
    if layout == "turn":
        assert len(rows) == sum(found.imitated)
        assert training_rows(found, trajectory, max_tokens=10) == ([], len(found.actions))


def test_reasons_are_given_only_where_they_are_demanded():
    found = play()
    demanded = trajectory_of(found, context())
    closed = trajectory_of(found, context(template=QWEN3_TEMPLATE, template_thinking="off"))
    assert all(t.response.startswith("<think>The task is to ") for t in demanded.turns)
    assert all(t.response.startswith("<action>") for t in closed.turns)
    assert expert_response("cool some bread.", "look", think=True) == (
        "<think>The task is to cool some bread. The next step is to look.</think>\n<action>look</action>"
    )


@pytest.fixture
def run(tmp_path):
    return RunConfig(
        run_dir=str(tmp_path / "run"), device="cpu",
        model=ModelConfig(path=str(save_tiny("qwen3", tmp_path / "model"))),
        env=EnvConfig(workers=0, max_steps=30, template_thinking="off"),
        rollout=RolloutConfig(max_prompt_tokens=1500, max_response_tokens=64),
    )  # fmt: skip


SFT = SftConfig(games=2, epochs=2, lr=1e-2, warmup_steps=2, batch_tokens=2048, checkpoint_every=4)


def parameters(folder):
    model = load_policy(ModelConfig(path=str(folder)), "cpu").model
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_model_learns_the_expert_and_is_left_alone_afterwards(run, tmp_path):
    out = warm_start_on_expert(run, SFT, say=str)
    facts = json.loads((out / "sft.json").read_text())
    assert out == tmp_path / "run-sft"
    assert (facts["games"], facts["rows_too_long"]) == (2, 0)
    assert facts["rows"] > facts["won"] > 0
    assert sum(facts["losses"][-3:]) < 0.9 * sum(facts["losses"][:3])
    assert not torch.equal(parameters(run.model.path), parameters(out))
    assert not (out / "fit.pt").exists()
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert warm_start_on_expert(run, replace(SFT, checkpoint_every=0), say=str) == out
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    with pytest.raises(ValueError, match=r"holds another warm start: sft\.lr was 0\.01 and is now 0\.1; choose"):
        warm_start_on_expert(run, replace(SFT, lr=0.1), say=str)
    with pytest.raises(ValueError, match=r"rollout\.max_prompt_tokens was 1500 and is now 1400"):
        warm_start_on_expert(replace(run, rollout=replace(run.rollout, max_prompt_tokens=1400)), SFT, say=str)


class Killed(Exception):
    """Stands for the end of the process."""


def killed_in(patch, owner, name, *, call, run):
    """Run until a method has been called so many times."""
    original, calls = getattr(owner, name), []

    def method(*args):
        original(*args)
        calls.append(args)
        if len(calls) == call:
            raise Killed

    patch.setattr(owner, name, method)
    run()


def test_a_warm_start_that_is_cut_short_goes_on_to_the_same_end(run, tmp_path, monkeypatch):
    whole = warm_start_on_expert(run, replace(SFT, out=str(tmp_path / "whole")), say=str)
    parts = replace(SFT, out=str(tmp_path / "parts"))

    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in(patch, PlayLog, "append", call=1, run=lambda: warm_start_on_expert(run, parts, say=str))
    with (tmp_path / "parts/plays.jsonl").open("a") as file:
        file.write('{"task": "half a li')  # what a process leaves that dies while it writes
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in(patch, FitState, "step", call=6, run=lambda: warm_start_on_expert(run, parts, say=str))
    assert (tmp_path / "parts/fit.pt").exists()
    warm_start_on_expert(run, parts, say=str)
    assert torch.equal(parameters(whole), parameters(tmp_path / "parts"))
    assert (whole / "plays.jsonl").read_bytes() == (tmp_path / "parts/plays.jsonl").read_bytes()
    first, second = (json.loads((folder / "sft.json").read_text()) for folder in (whole, tmp_path / "parts"))
    assert first["losses"] == second["losses"]


def test_plays_on_disk_are_those_that_were_played(tmp_path):
    log = PlayLog(tmp_path / "plays.jsonl", TASKS)
    played = [play(noise=0.2), None]
    for one in played:
        log.append(one)
    assert PlayLog(log.path, TASKS).read() == played
    with pytest.raises(ValueError, match=rf"plays\.jsonl line 1 is about {TASKS[0].task_id}, not about"):
        PlayLog(log.path, TASKS[::-1]).read()
    with pytest.raises(ValueError, match="holds 2 episodes, 1 games are to be played"):
        PlayLog(log.path, TASKS[:1]).read()


def test_a_lost_player_is_an_error_and_no_hang(monkeypatch):
    monkeypatch.setattr(expert_play, "_play_in_process", dies)
    with pytest.raises(BrokenProcessPool):
        list(iter_plays(TASKS, expert="hand", noise=0.0, max_steps=5, seed=0, workers=2))


def test_mistakes_are_named_before_anything_is_played(run, capsys, tmp_path):
    with pytest.raises(ValueError, match=r"sft\.noise must lie in \[0\.0, 0\.9\], got 1"):
        SftConfig(noise=1.0)
    with pytest.raises(ValueError, match=r"it won 0 of 2 games within env\.max_steps=1, and 0 rows were longer"):
        warm_start_on_expert(replace(run, env=replace(run.env, max_steps=1)), SftConfig(games=2), say=str)
    narrow = replace(run, run_dir=str(tmp_path / "narrow"), rollout=replace(run.rollout, max_prompt_tokens=16))
    with pytest.raises(ValueError, match=r"rollout\.max_prompt_tokens must hold the first prompt .* got 16 where"):
        warm_start_on_expert(narrow, SftConfig(games=2), say=str)
    assert not (tmp_path / "narrow-sft/plays.jsonl").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="full is not empty and holds no warm start"):
        warm_start_on_expert(run, SftConfig(out=str(tmp_path / "full")), say=str)
    with pytest.raises(ValueError, match="stepopsd sft has no expert for searchqa"):
        warm_start_on_expert(replace(run, env=EnvConfig(name="searchqa")), SFT, say=str)
    assert cli.main(["sft", "--preset", "alfworld/nothing"]) == 1
    assert "unknown preset alfworld/nothing" in capsys.readouterr().err


def test_command_takes_keys_of_the_run_and_of_the_imitation(run, tmp_path):
    out = tmp_path / "by-command"
    args = ["--preset", "demo", "--model.path", run.model.path, "--sft.out", str(out), "--device", "cpu"]
    sizes = ["--sft.games", "1", "--sft.expert", "planner", "--env.workers", "0", "--rollout.max-prompt-tokens", "2000"]
    assert cli.main(["sft", *args, *sizes, "--rollout.max-response-tokens", "32"]) == 0
    assert json.loads((out / "sft.json").read_text())["sft"]["expert"] == "planner"
