"""The real engine behind the protocol: memoising changes no word, episodes repeat exactly, errors name the game."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from stepopsd.envs.alfworld import AlfworldEnv, Engine, engine, memo, walkthrough
from stepopsd.envs.base import Observation, StepResult, Task
from stepopsd.envs.pool import InlinePool, ProcessPool
from stepopsd.envs.replay import replay
from tests.extras import missing

# Not importorskip: importing alfworld sets ALFWORLD_DATA for the whole test run.
if find_spec("alfworld") is None:
    pytest.skip(missing("alfworld"), allow_module_level=True)


@pytest.fixture(scope="module")
def env() -> Iterator[AlfworldEnv]:
    env = AlfworldEnv()
    yield env
    env.close()


def random_walk(env: AlfworldEnv, task: Task, steps: int, seed: int = 0) -> list[Observation | StepResult]:
    """Mostly accepted actions, some that are not."""
    rng = random.Random(seed)
    seen = env.reset(task, 0)
    log: list[Observation | StepResult] = [seen]
    for _ in range(steps):
        result = env.step(rng.choice([*seen.admissible, "help", "open sesame"]))
        log.append(result)
        seen = result.observation
        if result.done:
            break
    return log


def test_memoised_engine_says_what_the_installed_engine_says(tiny_tasks: list[Task], full_task: Task) -> None:
    memoised, installed = AlfworldEnv(), AlfworldEnv(memoise=False)
    assert type(memoised._engine._env.unwrapped) is memo.memoised_pddl_env()
    assert type(installed._engine._env.unwrapped).__module__ == "textworld.envs.pddl.pddl"
    for seed, task in enumerate([*tiny_tasks[:3], full_task]):
        assert random_walk(memoised, task, 12, seed) == random_walk(installed, task, 12, seed)
        assert memoised.plan() == installed.plan()
    memoised.close()
    installed.close()


def test_installed_modules_stay_as_installed() -> None:
    memo.memoised_pddl_env()
    import fast_downward
    from textworld.envs.pddl import logic, pddl, textgen
    from textworld.logic import Rule

    assert textgen.Rule is Rule
    assert textgen.deepcopy.__module__ == "copy"
    assert logic.fast_downward is pddl.fast_downward is fast_downward
    assert isinstance(logic.GameLogic, type)


def test_every_task_type_is_won_by_its_walkthrough(env: AlfworldEnv, tiny_tasks: list[Task]) -> None:
    assert len({task.kind for task in tiny_tasks}) == 6
    for task in tiny_tasks:
        results = replay(env, task, 0, walkthrough(task.source))
        assert [result.done for result in results] == [False] * (len(results) - 1) + [True]
        assert [result.reward for result in results] == [0.0] * (len(results) - 1) + [1.0]
        assert results[-1].success


def test_planner_wins_from_the_middle_of_an_episode(env: AlfworldEnv, tiny_tasks: list[Task]) -> None:
    random_walk(env, tiny_tasks[0], 5)
    assert [env.step(action) for action in env.plan()][-1].success


def test_first_observation_states_the_goal_and_offers_no_help(env: AlfworldEnv, tiny_tasks: list[Task]) -> None:
    for task in tiny_tasks:
        first = env.reset(task, 0)
        assert env.goal
        assert first.text.endswith(f"Your task is to: {env.goal}")
        assert "look" in first.admissible
        assert "help" not in first.admissible
        assert list(first.admissible) == sorted(set(first.admissible))


def test_actions_that_are_not_admissible_change_nothing(env: AlfworldEnv, tiny_tasks: list[Task]) -> None:
    first = env.reset(tiny_tasks[0], 0)
    result = env.step("dance with fridge 1")
    assert result == StepResult(Observation("Nothing happens.", first.admissible), 0.0, False, False)
    assert "Available commands" in env.step("help").observation.text
    assert env.step("").observation.admissible == first.admissible


def test_episodes_of_one_game_are_equal_whatever_was_played_before(env: AlfworldEnv, tiny_tasks: list[Task]) -> None:
    first = random_walk(env, tiny_tasks[1], 10)
    for other in (tiny_tasks[1], tiny_tasks[2], tiny_tasks[1]):
        random_walk(env, other, 7, seed=5)
    assert random_walk(env, tiny_tasks[1], 10) == first


def test_engines_in_one_process_do_not_disturb_each_other(tiny_tasks: list[Task]) -> None:
    alone = [random_walk(AlfworldEnv(), task, 8) for task in tiny_tasks[:3]]
    pool = InlinePool(AlfworldEnv, 3)
    rngs = [random.Random(0) for _ in alone]
    started = pool.reset({slot: (task, 0) for slot, task in enumerate(tiny_tasks[:3])})
    seen = {slot: answer[1] for slot, answer in started.items()}  # type: ignore[index]
    for step in range(1, 9):
        live = {slot: seen[slot] for slot in seen if step < len(alone[slot])}
        results = pool.step(
            {slot: rngs[slot].choice([*now.admissible, "help", "open sesame"]) for slot, now in live.items()}
        )
        assert results == {slot: alone[slot][step] for slot in live}
        seen.update({slot: result.observation for slot, result in results.items()})  # type: ignore[union-attr]
    pool.close()


def test_worker_processes_play_the_same_episodes(tiny_tasks: list[Task]) -> None:
    starts = {slot: (tiny_tasks[slot // 2], 0) for slot in range(4)}
    logs = []
    for pool in (InlinePool(AlfworldEnv, 4), ProcessPool(AlfworldEnv, 4, workers=2)):
        log: list[object] = [pool.reset(starts)]
        for depth in range(3):
            log.append(pool.step({slot: walkthrough(task.source)[depth] for slot, (task, _) in starts.items()}))
        logs.append(log)
        pool.close()
    assert logs[0] == logs[1]


def test_words_do_not_depend_on_the_process(tiny_tasks: list[Task], env: AlfworldEnv) -> None:
    """Also: importing alfworld in a fresh process leaves ALFWORLD_DATA and the command line as they were."""
    program = (
        "import sys, os; from tests.envs.test_alfworld_engine import random_walk, AlfworldEnv, Task;"
        f"log = random_walk(AlfworldEnv(), {tiny_tasks[2]!r}, 10);"
        "print(repr((log, 'ALFWORLD_DATA' in os.environ, sys.argv)))"
    )
    expected = repr((random_walk(env, tiny_tasks[2], 10), False, ["-c"]))
    for hash_seed in ("1", "2"):
        variables = {**os.environ, "PYTHONHASHSEED": hash_seed}
        variables.pop("ALFWORLD_DATA", None)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=variables,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize(
    ("part", "old", "new"),
    [
        ("pddl_problem", "(:init", "(:unit"),
        ("pddl_problem", "(:goal", ""),
        ("pddl_problem", "agent1", "agent9"),
        ("pddl_domain", "(:action", "(:auction"),
        ("grammar", "action GotoLocation", "actor GotoLocation"),
        ("grammar", "Your task is to: ", "Enjoy: "),
    ],
)
def test_game_that_the_engine_cannot_play_is_an_error_that_names_it(
    env: AlfworldEnv, tiny_tasks: list[Task], tmp_path: Path, part: str, old: str, new: str
) -> None:
    game = json.loads(Path(tiny_tasks[0].source).read_text())
    assert old in game[part]
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps({**game, part: game[part].replace(old, new, 1)}))
    with pytest.raises(ValueError, match=str(path)):
        env.reset(Task("train/broken", "alfworld", tiny_tasks[0].kind, "train", str(path)), 0)
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step("look")
    assert replay(env, tiny_tasks[0], 0, walkthrough(tiny_tasks[0].source))[-1].success


def test_steps_outside_an_episode_are_refused(tiny_tasks: list[Task]) -> None:
    env = AlfworldEnv()
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step("look")
    replay(env, tiny_tasks[0], 0, walkthrough(tiny_tasks[0].source))
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step("look")
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.reset(tiny_tasks[0], 0)


def test_closed_engine_is_used_again_and_knows_nothing(tiny_tasks: list[Task]) -> None:
    first = Engine()
    interpreter = first._env
    first.start(tiny_tasks[0].source)
    first.command("inventory")
    first.close()
    second = Engine()
    assert second._env is interpreter
    fresh = second.start(tiny_tasks[0].source)
    assert fresh == second.start(tiny_tasks[0].source)
    second.close()


def test_unknown_release_runs_as_installed_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "KNOWN_VERSIONS", {"textworld": ("0.1",)})
    monkeypatch.setattr(engine, "_idle_interpreters", lambda memoise: [])
    memo.supported.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="written for textworld 0.1, found textworld"):
            env = AlfworldEnv()
    finally:
        memo.supported.cache_clear()
    assert type(env._engine._env.unwrapped).__module__ == "textworld.envs.pddl.pddl"


def test_missing_engine_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_idle_interpreters", lambda memoise: [])
    monkeypatch.setitem(sys.modules, "alfworld.agents.environment.alfred_tw_env", None)
    with pytest.raises(ImportError, match=r"pip install 'stepopsd\[alfworld\]'"):
        AlfworldEnv()
