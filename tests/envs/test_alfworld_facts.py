"""Indexed facts answer TextWorld's queries as TextWorld does: the same assignments in the same order, at any time."""

from __future__ import annotations

import random
import re
from importlib.util import find_spec
from typing import Any

import pytest

from stepopsd.envs.alfworld import AlfworldEnv, memo
from stepopsd.envs.alfworld.games import read_game
from stepopsd.envs.base import Task
from tests.extras import missing

if find_spec("alfworld") is None:
    pytest.skip(missing("alfworld"), allow_module_level=True)

#: Two facts of one kind joined, a type with subtypes, a placeholder that no fact binds, one that fits nothing.
EXTRA_QUERIES = (
    "receptacleatlocation(r:receptacle, l:location) & receptacleatlocation(other:receptacle, l:location)",
    "inreceptacle(o:object, r:receptacle) & inreceptacle(other:object, r:receptacle)",
    "inreceptacle(o:object, r:receptacle) & receptacleatlocation(r:receptacle, l:location)",
    "holds(a:agent, o:object) & isclean(o:object)",
)


def state_of(env: AlfworldEnv) -> Any:
    return env._engine._env.unwrapped._pddl_state


def queries(task: Task) -> list[str]:
    """Every condition of the game's own grammar, and ours."""
    grammar = read_game(task.source)["grammar"]
    found = re.findall(r'"condition": "([^"]+)"', grammar) + re.findall(r"\| ([^}]+)}", grammar)
    assert len(found) > 20
    return sorted({*found, *EXTRA_QUERIES})


def answers(state: Any, rule: Any, mapping: dict[Any, Any]) -> list[dict[Any, Any]]:
    return [dict(answer) for answer in state.all_assignments(rule, mapping)]


def plain_state(state: Any) -> Any:
    """TextWorld's own state with the same facts."""
    from textworld.logic import GameLogic, State

    plain = State(GameLogic(), state.facts)
    plain._logic = state._logic
    return plain


def walk(env: AlfworldEnv, task: Task, steps: int) -> Any:
    rng = random.Random(task.task_id)
    seen = env.reset(task, 0)
    yield state_of(env)
    for _ in range(steps):
        result = env.step(rng.choice(seen.admissible))
        seen = result.observation
        yield state_of(env)
        if result.done:
            return


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_every_query_has_textworlds_answers_in_textworlds_order(
    size: str, tiny_tasks: list[Task], full_task: Task
) -> None:
    from textworld.logic import Rule

    env, compared, answered = AlfworldEnv(), 0, 0
    for task in tiny_tasks[:2] if size == "tiny" else [full_task]:
        rules = [Rule.parse_conjunctive_query(query) for query in queries(task)]
        for state in walk(env, task, 5):
            plain = plain_state(state)
            mappings = [{}, *(action.mapping for action in state.all_applicable_actions()[::9])]
            for rule in rules:
                for mapping in mappings:
                    expected = answers(plain, rule, mapping)
                    assert answers(state, rule, mapping) == expected
                    compared += 1
                    answered += len(expected)
    env.close()
    assert compared > 300
    assert answered > compared


def test_beginning_again_does_not_see_what_was_played(tiny_tasks: list[Task]) -> None:
    one, other = AlfworldEnv(), AlfworldEnv()
    task = tiny_tasks[0]
    one.reset(task, 0)
    untouched = {str(fact) for fact in state_of(one).facts}
    for state in walk(one, task, 10):
        played = {str(fact) for fact in state.facts}
    assert played != untouched
    other.reset(task, 0)
    assert {str(fact) for fact in state_of(other).facts} == untouched
    one.reset(task, 0)
    assert {str(fact) for fact in state_of(one).facts} == untouched
    assert state_of(one).variables_of_type("receptacle") == state_of(other).variables_of_type("receptacle")
    one.close()
    other.close()


def test_table_of_all_facts_is_emptied_and_nothing_notices(
    tiny_tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mementos import core

    def play(env: AlfworldEnv) -> list[object]:
        rng, log = random.Random(1), []
        for task in tiny_tasks[:3]:
            seen = env.reset(task, 0)
            for _ in range(6):
                result = env.step(rng.choice(seen.admissible))
                log.append(result)
                seen = result.observation
        return log

    env = AlfworldEnv()
    known = play(env)
    monkeypatch.setattr(memo, "REMEMBERED_FACTS", 200)
    assert play(env) == known
    size = len(core._memento_cache)
    for _ in range(3):
        assert play(env) == known
    assert len(core._memento_cache) <= size + 1500
    env.close()
