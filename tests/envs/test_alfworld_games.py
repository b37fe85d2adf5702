"""Finding and reading game files: both folder layouts, split names, task types, and errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepopsd.envs.alfworld import TASK_TYPES, list_tasks, read_game, walkthrough

GAME = {"pddl_domain": "(domain)", "grammar": "grammar", "pddl_problem": "(problem)", "walkthrough": ["look"]}
FOLDERS = {
    "pick_heat_then_place_in_recep-Mug-None-Shelf-3": ("trial_b", "trial_a"),
    "look_at_obj_in_light-Book-None-DeskLamp-301": ("trial_c",),
}


def write_game(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "game.tw-pddl"
    path.write_text(json.dumps({**GAME, **changes}))
    return path


def write_split(folder: Path) -> None:
    for kind, trials in FOLDERS.items():
        for trial in trials:
            write_game(folder / kind / trial)


@pytest.mark.parametrize("parent", ["json_2.1.1", "."])
@pytest.mark.parametrize(
    ("folder", "names"), [("valid_seen", ("seen", "valid_seen")), ("seen", ("seen",)), ("train", ("train",))]
)
def test_split_is_found_in_both_layouts_and_by_both_names(
    tmp_path: Path, parent: str, folder: str, names: tuple[str, ...]
) -> None:
    write_split(tmp_path / parent / folder)
    for name in names:
        tasks = list_tasks(tmp_path, name)
        assert {task.split for task in tasks} == {names[0]}
        assert [task.task_id for task in tasks] == [
            f"{names[0]}/look_at_obj_in_light-Book-None-DeskLamp-301/trial_c",
            f"{names[0]}/pick_heat_then_place_in_recep-Mug-None-Shelf-3/trial_a",
            f"{names[0]}/pick_heat_then_place_in_recep-Mug-None-Shelf-3/trial_b",
        ]
        assert [task.kind for task in tasks] == ["look_at_obj_in_light", *["pick_heat_then_place_in_recep"] * 2]
        assert all(Path(task.source).is_file() and task.env == "alfworld" for task in tasks)


def test_task_description_beside_the_game_overrides_the_folder_name(tmp_path: Path) -> None:
    path = write_game(tmp_path / "train" / "anything" / "trial")
    (path.parent / "traj_data.json").write_text(json.dumps({"task_type": "pick_two_obj_and_place"}))
    assert [task.kind for task in list_tasks(tmp_path, "train")] == ["pick_two_obj_and_place"]


def test_every_task_type_is_read_from_a_folder_name(tmp_path: Path) -> None:
    for kind in TASK_TYPES:
        write_game(tmp_path / "train" / f"{kind}-Mug-None-Shelf-3" / "trial")
    assert sorted(task.kind for task in list_tasks(tmp_path, "train")) == sorted(TASK_TYPES)


def test_games_that_alfworld_leaves_out_are_left_out(tmp_path: Path) -> None:
    write_split(tmp_path / "train")
    write_game(tmp_path / "train" / "pick_heat_then_place_in_recep-AppleSliced-None-Shelf-3" / "trial")
    write_game(tmp_path / "train" / "pick_and_place_with_movable_recep-Pen-Mug-Desk-310" / "trial")
    assert len(list_tasks(tmp_path, "train")) == 3


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        list_tasks(tmp_path / "nowhere", "train")
    write_split(tmp_path / "json_2.1.1" / "train")
    with pytest.raises(FileNotFoundError, match=r"split 'unseen' not found in .*; found: train"):
        list_tasks(tmp_path, "unseen")
    (tmp_path / "seen").mkdir()
    with pytest.raises(FileNotFoundError, match=r"split 'seen': no game.tw-pddl below"):
        list_tasks(tmp_path, "seen")


def test_unknown_task_type_is_named(tmp_path: Path) -> None:
    write_game(tmp_path / "train" / "juggle_three_objects-Mug" / "trial")
    with pytest.raises(ValueError, match="task type None is none of pick_and_place_simple"):
        list_tasks(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a readable JSON file"),
        ("[1]", "must hold a JSON object, got list"),
        (json.dumps({**GAME, "grammar": " "}), "'grammar' must be a non-empty text"),
        (json.dumps({**GAME, "pddl_problem": 3}), "'pddl_problem' must be a non-empty text, got 3"),
        (json.dumps({"pddl_domain": "x"}), "'grammar' must be a non-empty text, got None"),
        (json.dumps({**GAME, "solvable": False}), "cannot be solved"),
    ],
)
def test_broken_file_says_what_is_broken(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "game.tw-pddl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_game(path)
    assert str(path) in str(caught.value)


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot be read: No such file"):
        read_game(tmp_path / "game.tw-pddl")


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_game(tmp_path)
    assert walkthrough(path) == ["look"]
    assert read_game(path) is read_game(path)
    write_game(tmp_path, walkthrough=["inventory", "look"])
    assert walkthrough(path) == ["inventory", "look"]


@pytest.mark.parametrize("stored", [None, [], [1]])
def test_missing_walkthrough_is_an_error(tmp_path: Path, stored: Any) -> None:
    with pytest.raises(ValueError, match="stores no walkthrough"):
        walkthrough(write_game(tmp_path, walkthrough=stored))
