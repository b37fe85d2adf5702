"""Scene layouts: fixed by scene number, all different, and never shared between training and held-out scenes."""

from __future__ import annotations

from collections import Counter

import pytest

from stepopsd.envs.games.layout import HELD_OUT, SIZES, layout, room_of, scenes_of, split_scenes
from stepopsd.envs.games.rooms import ROOMS

ALL_SCENES = [scene for room in ROOMS for scene in scenes_of(room)]


def counts(scene: int, size: str) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(r.kind for r in layout(scene, size)).items()))


def test_splits_share_or_hold_out_whole_scenes():
    assert split_scenes("train") == split_scenes("seen")
    assert set(split_scenes("unseen")) == HELD_OUT
    assert set(split_scenes("train")).isdisjoint(HELD_OUT)
    assert len(split_scenes("train")) + len(HELD_OUT) == 120
    assert Counter(map(room_of, HELD_OUT)) == dict.fromkeys(ROOMS, 3)


@pytest.mark.parametrize("size", SIZES)
def test_no_two_scenes_of_a_room_type_have_the_same_receptacles(size):
    for room in ROOMS:
        assert len({counts(scene, size) for scene in scenes_of(room)}) == 30


@pytest.mark.parametrize("size", SIZES)
def test_every_layout_can_host_the_tasks_of_its_room(size):
    for scene in ALL_SCENES:
        kinds = {r.kind for r in layout(scene, size)}
        if room_of(scene) == "kitchen":
            assert {"Fridge", "Microwave", "SinkBasin", "CounterTop"} <= kinds
        if room_of(scene) == "bathroom":
            assert "SinkBasin" in kinds
        if room_of(scene) in ("living", "bedroom"):
            assert kinds & {"Desk", "SideTable", "Dresser", "CoffeeTable"}


def test_tiny_layouts_have_about_a_quarter_of_the_receptacles():
    full = sum(len(layout(scene, "full")) for scene in ALL_SCENES)
    tiny = sum(len(layout(scene, "tiny")) for scene in ALL_SCENES)
    assert 0.2 < tiny / full < 0.45


@pytest.mark.parametrize("size", SIZES)
def test_names_are_unique_and_locations_have_no_gap(size):
    for scene in ALL_SCENES:
        receptacles = layout(scene, size)
        assert len({r.name for r in receptacles}) == len(receptacles)
        assert {r.location for r in receptacles} == set(range(1, max(r.location for r in receptacles) + 1))


def test_neighbours_share_a_location_in_full_rooms_only():
    def shared(size: str) -> int:
        return sum(len(places) - len({r.location for r in places}) for places in (layout(s, size) for s in ALL_SCENES))

    assert shared("tiny") == 0
    assert 120 < shared("full") < 360


def test_receptacles_are_left_out_down_to_one_of_each_type():
    for scene in ALL_SCENES:
        places = layout(scene, "full")
        kinds = {r.kind for r in places}
        fewer = layout(scene, "full", len(kinds))
        assert sorted(r.kind for r in fewer) == sorted(kinds)
        assert layout(scene, "full", len(places)) == places
        with pytest.raises(ValueError, match=rf"most must be at least {len(kinds)}, .*scene {scene}"):
            layout(scene, "full", len(kinds) - 1)


@pytest.mark.parametrize("scene", [0, 31, 200, 231, 431, -1])
def test_unknown_scene_is_named_in_the_error(scene):
    with pytest.raises(ValueError, match=rf"scene must lie in .*got {scene}"):
        layout(scene, "tiny")


def test_unknown_size_and_split_are_named_in_the_error():
    with pytest.raises(ValueError, match=r"size must be one of tiny, full, got 'huge'"):
        layout(1, "huge")
    with pytest.raises(ValueError, match=r"split must be one of train, seen, unseen, got 'test'"):
        split_scenes("test")
