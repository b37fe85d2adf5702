"""The domain and the grammar of the games, read from the installed alfworld package."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepopsd.envs.alfworld.games import GAME_FILE
from stepopsd.envs.games.game import Game
from stepopsd.envs.games.rooms import LAMP
from stepopsd.envs.install import INSTALL_HINT

#: the place in the grammar that every game replaces by its own goal
GOAL_SLOT = "UNKNOWN GOAL"


def alfworld_data() -> Path:
    """Folder of the data files in the installed alfworld package; found without importing it.

    Raises:
        ModuleNotFoundError: if alfworld is not installed.
    """
    spec = importlib.util.find_spec("alfworld")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"alfworld is not installed: {INSTALL_HINT}")
    return Path(spec.origin).parent / "data"


@lru_cache(maxsize=1)
def domain_and_grammar() -> tuple[str, str]:
    """Texts of ``alfred.pddl`` and ``alfred.twl2``.

    Raises:
        FileNotFoundError: if the installed alfworld does not carry them.
        ValueError: if the grammar has no place for a goal.
    """
    texts = []
    for name in ("alfred.pddl", "alfred.twl2"):
        path = alfworld_data() / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the games need alfworld 0.4.2 or newer")
        texts.append(path.read_text(encoding="utf-8"))
    domain, grammar = texts
    if GOAL_SLOT not in grammar:
        raise ValueError(f"the grammar of the installed alfworld has no {GOAL_SLOT!r}; 0.4.2 is known to work")
    return domain, grammar


def engine_hash() -> str:
    """Fingerprint of domain and grammar: games made under the same one read the same."""
    return hashlib.sha256("\0".join(domain_and_grammar()).encode()).hexdigest()


def game_file(game: Game) -> dict[str, Any]:
    """The content of ``game.tw-pddl``."""
    domain, grammar = domain_and_grammar()
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace(GOAL_SLOT, game.goal),
        "pddl_problem": game.problem,
        "solvable": True,
        "walkthrough": list(game.walkthrough),
    }


def trajectory_file(game: Game) -> dict[str, Any]:
    """The content of ``traj_data.json``: the fields that alfworld's own environment looks at, and ours."""
    return {
        "task_type": game.task_type,
        "goal": game.goal,
        "size": game.size,
        "pddl_params": {
            "object_target": game.obj,
            "parent_target": "" if game.target == LAMP else game.target,
            "toggle_target": game.target if game.target == LAMP else "",
            "mrecep_target": "",
            "object_sliced": game.sliced,
        },
        "scene": {"scene_num": game.scene},
    }


def write_game(game: Game, split_folder: Path) -> Path:
    """Write a game in the official folder form; returns the path of its ``game.tw-pddl``."""
    folder = split_folder / game.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / GAME_FILE
    (folder / "traj_data.json").write_text(json.dumps(trajectory_file(game), indent=1), encoding="utf-8")
    path.write_text(json.dumps(game_file(game)), encoding="utf-8")
    return path
