"""A history window that does not fit the context stops a run before it starts, and the error names the game."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from transformers import AutoTokenizer

from tests.extras import missing

pytest.importorskip("textworld", reason=missing("textworld"))
pytest.importorskip("alfworld", reason=missing("alfworld"))

from stepopsd.envs.alfworld import AlfworldEnv
from stepopsd.envs.games.generator import iter_games
from stepopsd.envs.games.make import write_task
from stepopsd.experiments.demo import PRESET
from stepopsd.experiments.warmstart import BUNDLED_MODEL
from stepopsd.rollout.contexts import DialogueContext, Prompting, TurnContext
from stepopsd.rollout.limits import Limits
from stepopsd.text.chat import ChatFormat
from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import from_tree
from stepopsd.train.trainer import Trainer
from stepopsd.train.windows import require_window

LIMITS = Limits(max_steps=50, max_prompt_tokens=300, max_response_tokens=16)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("games")
    return [write_task(game, folder) for game in iter_games(5, 6)]


@pytest.fixture(scope="module")
def env():
    return AlfworldEnv()


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(AutoTokenizer.from_pretrained(BUNDLED_MODEL))


def windowed(chat, window):
    return TurnContext(chat, Prompting(window, think=False, style="compact"))


def test_windows_that_fit_pass(env, chat, tasks):
    require_window(env, windowed(chat, 2), LIMITS, tasks, 2)
    require_window(env, windowed(chat, 1000), replace(LIMITS, max_steps=3), tasks, 1000)


def test_a_window_beyond_the_context_names_the_game_and_what_would_fit(env, chat, tasks):
    with pytest.raises(ValueError, match=r"env.history=40 must fit rollout.max_prompt_tokens=300") as caught:
        require_window(env, windowed(chat, 40), LIMITS, tasks[:1], 40)
    assert tasks[0].source in str(caught.value)
    most = int(re.search(r"show at most (\d+)", str(caught.value))[1])
    require_window(env, windowed(chat, most), LIMITS, tasks[:1], most)
    with pytest.raises(ValueError, match=f"with {most + 1} past steps"):
        require_window(env, windowed(chat, most + 1), LIMITS, tasks[:1], most + 1)


def test_every_type_of_game_is_looked_at(env, chat, tasks):
    def longest(task):
        return len(windowed(chat, 0).open(env.goal, env.reset(task, 0)).prompt_ids)

    widest = max(tasks, key=longest)
    with pytest.raises(ValueError, match=r"must hold the first prompt of every game, got \d+ where") as caught:
        require_window(env, windowed(chat, 0), replace(LIMITS, max_prompt_tokens=longest(widest) - 1), tasks, 0)
    assert widest.source in str(caught.value)


def test_a_dialogue_needs_room_for_its_opening_only(env, chat, tasks):
    dialogue = DialogueContext(chat, Prompting(1000, think=False, style="compact"))
    require_window(env, dialogue, LIMITS, tasks, 1000)
    with pytest.raises(ValueError, match="must hold the first prompt of every game, got 5 where"):
        require_window(env, dialogue, replace(LIMITS, max_prompt_tokens=5), tasks, 1000)


@pytest.mark.parametrize(
    ("section", "changes", "error", "message"),
    [
        ("env", {"history": 45}, ValueError, "env.history=45 must fit rollout.max_prompt_tokens=640"),
        ("env", {"eval_splits": ["dev"]}, FileNotFoundError, "split 'dev' not found"),
        ("env", {"train_split": "trian"}, FileNotFoundError, "split 'trian' not found"),
        ("env", {"games": "/nowhere"}, FileNotFoundError, "'/nowhere' is not a folder"),
    ],
)
def test_a_run_that_cannot_work_leaves_nothing_behind(tmp_path, section, changes, error, message):
    tree = yaml.safe_load(PRESET.read_text())
    tree |= {"run_dir": str(tmp_path / "run"), "device": "cpu", "model": {"path": str(BUNDLED_MODEL)}}
    tree["rollout"]["context"] = "turn"
    tree["env"]["max_steps"] = 50
    tree[section] |= changes
    with pytest.raises(error, match=message):
        Trainer(from_tree(RunConfig, tree))
    assert not (tmp_path / "run").exists()
