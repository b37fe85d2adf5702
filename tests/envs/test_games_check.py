"""`stepopsd games check`, and what training asks of games before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.extras import missing

pytest.importorskip("textworld", reason=missing("textworld"))
pytest.importorskip("alfworld", reason=missing("alfworld"))

from stepopsd import cli
from stepopsd.envs.alfworld import list_tasks
from stepopsd.envs.alfworld.official import OFFICIAL_COUNTS, fingerprint
from stepopsd.envs.games.check import check_games
from stepopsd.envs.games.generator import iter_games
from stepopsd.envs.games.make import write_task
from stepopsd.envs.games.preflight import require_games
from stepopsd.train.config import EnvConfig
from stepopsd.train.episodes import tasks_of


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder with one training game of each type."""
    for game in iter_games(0, 6):
        write_task(game, tmp_path / "set" / "train")
    return tmp_path / "set"


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_check_counts_hashes_and_plays_by_type(games):
    lines: list[str] = []
    result = check_games(games, sample=-1, workers=0, say=lines.append)
    assert result.problems == []
    assert set(result.counts["train"].values()) == {1}
    assert result.fingerprints["train"] == fingerprint(list_tasks(games, "train"))
    assert all(game.verdict.walkthrough_steps and game.verdict.expert_steps for game in result.played)
    assert sum("1/1" in line for line in lines) == 6
    assert any(line.split()[:2] == ["all", "6/6"] for line in lines)


def test_fingerprint_follows_content_not_formatting(games):
    before = fingerprint(list_tasks(games, "train"))
    path = Path(list_tasks(games, "train")[0].source)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1, sort_keys=True))
    assert fingerprint(list_tasks(games, "train")) == before
    change(path, walkthrough=["look"])
    assert fingerprint(list_tasks(games, "train")) != before


def test_check_finds_files_that_do_not_parse_and_games_that_are_not_won(games, capsys):
    first, second, *_ = (Path(task.source) for task in list_tasks(games, "train"))
    first.write_text("{ not json")
    change(second, walkthrough=["look"])
    assert cli.main(["games", "check", str(games), "--sample", "-1", "--workers", "0"]) == 1
    said = capsys.readouterr().out
    assert f"{first}: not a readable JSON file" in said
    assert f"{second}: its walkthrough does not win" in said
    assert "2 problems" in said


def test_check_compares_with_the_official_numbers(games, tmp_path):
    (tmp_path / "json_2.1.1").mkdir()
    (tmp_path / "json_2.1.1" / "train").symlink_to(games / "train")
    lines: list[str] = []
    result = check_games(tmp_path, sample=0, say=lines.append)
    assert result.problems == ["train: 3547 official games missing"]
    assert lines[0].split() == "train: 6 games, official 3553".split()
    assert "unseen: not here (official: 134 games)" in lines


def test_check_knows_a_split_by_its_official_folder(games, tmp_path):
    (tmp_path / "json_2.1.1").mkdir()
    (tmp_path / "json_2.1.1" / "valid_seen").symlink_to(games / "train")
    lines: list[str] = []
    result = check_games(tmp_path, sample=0, splits=("valid_seen",), say=lines.append)
    assert result.problems == ["seen: 134 official games missing"]
    assert lines[0].split() == "seen: 6 games, official 140".split()


def test_check_of_a_folder_without_games_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="not found in"):
        check_games(tmp_path)
    with pytest.raises(ValueError, match="sample must be -1"):
        check_games(tmp_path, sample=-2)


def test_sound_games_pass_before_training(games):
    assert tasks_of(EnvConfig(games=str(games)), "train") == list_tasks(games, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pddl_problem": ""}, "'pddl_problem' must be a non-empty text"),
        ({"pddl_problem": "(define (problem broken)"}, "the engine cannot load this game"),
        ({"solvable": False}, "this game cannot be solved"),
        ({"walkthrough": []}, "stores no walkthrough"),
        ({"walkthrough": ["look"]}, "its walkthrough does not win the game"),
    ],
)
def test_bad_game_stops_training_before_it_starts_and_is_named(games, changes, message):
    path = Path(list_tasks(games, "train")[2].source)
    change(path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        tasks_of(EnvConfig(games=str(games)), "train")
    assert str(path) in str(caught.value)


def test_half_copied_and_half_downloaded_sets_stop_training(games, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"split 'dev' not found in .*found: train"):
        require_games(games, "dev")
    path = Path(list_tasks(games, "train")[0].source)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.parent}: has a traj_data.json and no game.tw-pddl \(1 such"):
        require_games(games, "train")
    (tmp_path / "official" / "json_2.1.1").mkdir(parents=True)
    (tmp_path / "official" / "json_2.1.1" / "train").symlink_to(games / "train")
    with pytest.raises(ValueError, match=r"incomplete official split 'train': .* 1 of 790"):
        require_games(tmp_path / "official", "train")


def test_official_counts_add_up():
    assert {split: sum(kinds.values()) for split, kinds in OFFICIAL_COUNTS.items()} == {
        "train": 3553, "seen": 140, "unseen": 134,
    }  # fmt: skip
