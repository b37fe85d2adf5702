"""Panels are fixed and balanced."""

from __future__ import annotations

from stepopsd.envs.base import Task
from stepopsd.train.evaluation import panel, success_by_kind


def test_panel_is_fixed_and_meets_every_kind():
    tasks = [Task(f"{kind}/{i}", "alfworld", kind, "seen", "") for kind in "abcdef" for i in range(10)]
    chosen = panel(list(reversed(tasks)), 12)
    assert chosen == panel(tasks, 12)
    assert len({t.task_id for t in chosen}) == 12
    assert {t.kind for t in chosen} == set("abcdef")
    assert len(panel(tasks, 0)) == len(panel(tasks, 999)) == 60


def test_success_is_counted_per_kind():
    records = [{"kind": "a", "success": True}, {"kind": "a", "success": False}, {"kind": "b", "success": True}]
    assert success_by_kind(records) == {"a": (1, 2), "all": (2, 3), "b": (1, 1)}
