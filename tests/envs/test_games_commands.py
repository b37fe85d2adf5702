"""`stepopsd games`: making a set, checking a folder, downloading the official data."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.extras import missing

pytest.importorskip("textworld", reason=missing("textworld"))
pytest.importorskip("alfworld", reason=missing("alfworld"))

from stepopsd.envs.alfworld import AlfworldEnv, list_tasks
from stepopsd.envs.games import commands, make
from stepopsd.envs.games.commands import bundle_games, download_games, make_games
from stepopsd.envs.games.generator import iter_games
from stepopsd.envs.games.make import draw_checked, write_task
from stepopsd.envs.games.verify import check_game


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    assert make_games(out, train=6, seen=6, unseen=3, workers=0) == {"train": 6, "seen": 6, "unseen": 3}
    return out


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_made_games_are_listed_in_the_official_folder_form(made):
    tasks = list_tasks(made, "train")
    assert sorted({task.kind for task in tasks}) == sorted(task.kind for task in tasks)
    for task in tasks:
        kind, obj, movable, target, scene = Path(task.source).parts[-3].split("-")
        assert (kind, movable) == (task.kind, "None")
        description = json.loads(Path(task.source).with_name("traj_data.json").read_text())
        assert description["pddl_params"]["object_target"] == obj
        assert target in (description["pddl_params"]["parent_target"], description["pddl_params"]["toggle_target"])
        assert description["scene"]["scene_num"] == int(scene)


def test_number_of_workers_does_not_change_the_games(made, tmp_path):
    make_games(tmp_path, train=6, seen=6, unseen=3, workers=2)
    assert contents(tmp_path) == contents(made)


def test_full_size_games_are_won_too(tmp_path):
    assert make_games(tmp_path, train=6, seen=0, unseen=0, size="full", workers=0) == {"train": 6}


def test_harder_games_are_won_too(tmp_path):
    made = make_games(
        tmp_path, train=6, seen=0, unseen=0, size="full", workers=0, receptacles=(8, 14), distance=(2, 12), sliced=1.0
    )
    assert made == {"train": 6}


def test_games_that_the_expert_loses_are_replaced(tmp_path):
    made = list(draw_checked(tmp_path, {"train": 6}, size="tiny", seed=1, workers=0, expert_limit=8))
    first = list(iter_games(1, 6))
    assert {item.game.content_key for item in made} != {game.content_key for game in first}
    assert sorted(item.game.task_type for item in made) == sorted(game.task_type for game in first)
    assert len(list_tasks(tmp_path, "train")) == 6


def test_a_step_limit_that_no_game_can_meet_is_an_error_not_an_endless_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "_MAX_FRUITLESS", 2)
    with pytest.raises(RuntimeError, match=r"still missing: .*pick_two_obj_and_place"):
        list(draw_checked(tmp_path, {"train": 6}, size="tiny", seed=1, workers=0, expert_limit=1))


def test_bundle_is_a_small_file(tmp_path):
    assert bundle_games(out=tmp_path, train=6, seen=0, unseen=0, workers=0).stat().st_size < 20_000


def test_output_folder_in_use_is_refused(made):
    with pytest.raises(ValueError, match="out must not hold games yet, got"):
        make_games(made, train=1, seen=0, unseen=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": -1}, "train must be at least 0, got -1"),
        ({"size": "big"}, "size must be one of tiny, full, got 'big'"),
        ({"workers": -2}, "workers must be at least 0, got -2"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_games(tmp_path, **arguments)


def test_broken_problem_is_a_verdict_not_a_crash(tmp_path):
    path = Path(write_task(next(iter_games(0, 1)), tmp_path).source)
    broken = json.loads(path.read_text()) | {"pddl_problem": "(define (problem broken)"}
    path.write_text(json.dumps(broken))
    env = AlfworldEnv()
    task = list_tasks(tmp_path.parent, tmp_path.name)[0]
    assert check_game(env, task).problem
    path.unlink()
    assert "cannot be read" in check_game(env, task).problem


@pytest.fixture
def downloader(tmp_path, monkeypatch):
    """A stand-in for alfworld's command beside a stand-in interpreter, so that nothing is downloaded."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(commands, "find_spec", lambda name: True)
    return python.with_name("alfworld-download")


def test_download_runs_alfworlds_own_command_on_the_given_folder(downloader, tmp_path):
    downloader.write_text(
        "import os, sys\nopen(os.path.join(sys.argv[2], 'called'), 'w').write(os.environ['ALFWORLD_DATA'])\n"
    )
    dest = download_games(tmp_path / "data")
    assert (dest / "called").read_text() == str(dest)


def test_failed_download_names_the_exit_code(downloader, tmp_path):
    downloader.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended with code 3"):
        download_games(tmp_path / "data")


def test_download_without_its_needs_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'stepopsd\[alfworld\]'"):
        download_games(tmp_path)
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == "requests" else True)
    with pytest.raises(ModuleNotFoundError, match="needs requests"):
        download_games(tmp_path)
