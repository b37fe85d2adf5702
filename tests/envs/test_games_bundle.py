"""The bundled games: won on the real engine, apart from each other, unpacked once and whole."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from pathlib import Path

import pytest

from tests.extras import missing

pytest.importorskip("textworld", reason=missing("textworld"))
pytest.importorskip("alfworld", reason=missing("alfworld"))

from stepopsd.envs.alfworld import list_tasks
from stepopsd.envs.base import Task
from stepopsd.envs.games import bundle
from stepopsd.envs.games.bundle import bundled_games, bundled_keys, bundled_root, bundled_tasks, write_pack
from stepopsd.envs.games.generator import iter_games
from stepopsd.envs.games.goals import TASK_TYPES
from stepopsd.envs.games.layout import split_scenes
from stepopsd.envs.games.verify import Verdict, checker

SIZES = {"train": 240, "seen": 60, "unseen": 60}


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_every_bundled_game_is_won_on_the_real_engine_by_walkthrough_and_expert(cache_folder):
    tasks = [task for split in SIZES for task in bundled_tasks(split, cache_folder)]
    assert len(tasks) == 360
    assert lost(tasks) == []


def lost(tasks: list[Task]) -> list[tuple[str, Verdict]]:
    """Tasks that the walkthrough does not win, or the expert not within 20 steps."""
    with checker(workers=2, expert_limit=20) as check:
        pairs = list(zip(tasks, check(tasks), strict=True))
    return [
        (task.task_id, verdict)
        for task, verdict in pairs
        if verdict.walkthrough_steps is None or verdict.expert_steps is None
    ]


def test_splits_have_the_promised_sizes_and_balanced_types():
    for split, size in SIZES.items():
        kinds = Counter(game.task_type for where, game in bundled_games() if where == split)
        assert kinds == dict.fromkeys(TASK_TYPES, size // 6)


def test_no_content_is_in_two_games():
    assert len(bundled_keys()) == sum(SIZES.values())


def test_unseen_games_use_held_out_layouts_only():
    for split in SIZES:
        assert {game.scene for where, game in bundled_games() if where == split} <= set(split_scenes(split))
    unseen = {game.scene for where, game in bundled_games() if where == "unseen"}
    assert len(unseen) == 12


def test_bundled_games_can_be_kept_out_of_new_draws():
    drawn = {game.content_key for game in iter_games(0, 240, exclude=bundled_keys())}
    assert drawn.isdisjoint(bundled_keys())


def test_pack_is_what_its_command_makes():
    """Seed 0 gives the bundled games again (as far as the engine's verdict is not needed to tell)."""
    drawn = [game for game in iter_games(0, 240) if game.content_key in bundled_keys()]
    assert len(drawn) >= 235


def test_unpacked_files_have_the_official_form(cache_folder):
    root = bundled_root(cache_folder)
    split, game = bundled_games()[0]
    content = json.loads((root / split / game.folder / "game.tw-pddl").read_text())
    assert sorted(content) == ["grammar", "pddl_domain", "pddl_problem", "solvable", "walkthrough"]
    assert f"Your task is to: {game.goal}." in content["grammar"]
    description = json.loads((root / split / game.folder / "traj_data.json").read_text())
    assert description["task_type"] == game.task_type
    assert len(list_tasks(root, split)) == SIZES[split]


def test_second_call_touches_nothing(cache_folder, monkeypatch):
    root = bundled_root(cache_folder)
    monkeypatch.setattr(bundle, "write_game", lambda *_: pytest.fail("unpacked twice"))
    assert bundled_root(cache_folder) == root


def test_processes_that_ask_at_once_all_get_the_whole_set(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        counts = pool.map(_count_games, [tmp_path] * 3, chunksize=1)
    assert counts == [360] * 3
    assert [path.name for path in tmp_path.iterdir()] == [bundled_root(tmp_path).name]


def _count_games(folder: Path) -> int:
    return sum(1 for _ in bundled_root(folder).rglob("game.tw-pddl"))


def test_cache_follows_the_xdg_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bundled_root().parent == tmp_path / "stepopsd"


def test_other_engine_texts_get_a_folder_of_their_own_and_a_warning(tmp_path, monkeypatch):
    usual = bundled_root(tmp_path)
    monkeypatch.setattr(bundle, "engine_hash", lambda: "another grammar")
    with pytest.warns(RuntimeWarning, match=r"checked with alfworld 0\.4\.2"):
        other = bundled_root(tmp_path)
    assert other != usual


def test_failed_unpacking_leaves_nothing_behind(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "write_game", no_space)
    with pytest.raises(OSError, match="No space left"):
        bundled_root(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pack_round_trip(tmp_path, monkeypatch):
    games = [("seen", game) for game in iter_games(4, 6)]
    path = tmp_path / "pack"
    write_pack(path, games)
    monkeypatch.setattr(bundle, "_pack_bytes", path.read_bytes)
    assert list(bundle._read_pack()[1]) == games
