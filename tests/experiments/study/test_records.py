"""Records and table: every figure regenerates from the records alone, and the statistics are those of the runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stepopsd.experiments.evaluate import read_episodes, write_episodes
from stepopsd.experiments.report.load import load_run
from stepopsd.experiments.statistics import detectable, paired_difference, success_matrix
from stepopsd.experiments.study import records, table, work
from stepopsd.experiments.study.command import write_table
from stepopsd.experiments.warmstart import BUNDLED_MODEL
from stepopsd.train.config_io import dump_config
from tests.experiments.synthetic_runs import write_run


@pytest.fixture
def root(study, tmp_path):
    for cell in study.cells:
        folder = tmp_path / "cells" / cell.name
        rate = 0.9 if cell.method == "stepopsd" else 0.4
        # Methods end after different numbers of updates, as under an equal budget of tokens.
        updates = 10 if cell.method == "stepopsd" else 12
        write_run(folder, method=cell.method, seed=cell.seed, updates=updates, every=2, final_rate=rate)
        (folder / work.DONE).write_text("{}")
    return tmp_path


def test_records_hold_what_the_runs_hold(study, root, tmp_path):
    folder = records.write_records(study, root, tmp_path / "records")
    runs = records.read_records(folder)
    assert {m: [run.seed for run in members] for m, members in runs["toy"].items()} == {
        "grpo": [0, 1, 2], "stepopsd": [0, 1, 2],
    }  # fmt: skip
    for cell in study.cells:
        original = load_run(root / "cells" / cell.name, method=cell.method)
        copy = runs["toy"][cell.method][cell.seed]
        keys = ("update", "panel", "task_id", "success", "kind")
        assert [[e[k] for k in keys] for e in copy.episodes] == [[e[k] for k in keys] for e in original.episodes]
        np.testing.assert_array_equal(copy.series("loss")[1], original.series("loss")[1])


def test_an_episode_that_lost_its_infrastructure_is_not_a_failure(study, root, tmp_path):
    folder = records.write_records(study, root, tmp_path / "records")
    before = records.read_records(folder)["toy"]["grpo"][0].episodes
    every = read_episodes(folder / records.EPISODES)
    lost = next(e for e in every if e["method"] == "grpo" and e["run_seed"] == 0)
    lost |= {"status": "infra_error", "success": False}
    write_episodes(folder / records.EPISODES, every)
    assert len(records.read_records(folder)["toy"]["grpo"][0].episodes) == len(before) - 1
    assert len(records.read_records(folder)["toy"]["grpo"][1].episodes) == len(before)


def test_records_do_not_say_where_the_runs_lay(study, root, tmp_path):
    for cell in study.cells:
        path = root / "cells" / cell.name / "config.yaml"
        path.write_text(dump_config(cell.config_in(root)))
    written = (records.write_records(study, root, tmp_path / "records") / "runs.json").read_text()
    assert '"path": "bundled"' in written
    assert str(tmp_path) not in written
    assert str(BUNDLED_MODEL) not in written


def test_table_compares_last_evaluations_paired_by_seed_and_game(study, root, tmp_path):
    runs = records.read_records(records.write_records(study, root, tmp_path / "records"))
    found = {(line.panel, line.method): line for line in table.lines(runs, "grpo")}
    line = found["seen", "stepopsd"]
    left = [table.final_outcomes(run, "seen") for run in runs["toy"]["grpo"]]
    right = [table.final_outcomes(run, "seen") for run in runs["toy"]["stepopsd"]]
    games = sorted(left[0])
    a, b = success_matrix(left, games), success_matrix(right, games)
    assert line.difference == paired_difference(a, b)
    assert line.difference.estimate == pytest.approx(b.mean() - a.mean())
    assert line.last.estimate == pytest.approx(b.mean())
    assert line.detectable == detectable(line.difference)
    assert found["seen", "grpo"].difference is None
    assert line.generated == 10 * 21000


def test_one_command_rewrites_the_same_page_from_the_records(study, root, tmp_path, capsys):
    folder = records.write_records(study, root, tmp_path / "records")
    first = write_table(folder).read_text()
    (root / "cells").rename(tmp_path / "gone")
    again = write_table(folder, tmp_path / "again")
    assert again.read_text() == first
    assert (tmp_path / "again" / "curves-toy.png").stat().st_size > 10_000
    assert "stepopsd is higher also when the number of comparisons is allowed for" in first
    lines = json.loads((folder / "table.json").read_text())
    assert len(lines) == 2 * len({line["panel"] for line in lines})


def test_without_a_finished_cell_there_is_no_table(study, tmp_path):
    with pytest.raises(ValueError, match="no cell of the study is finished"):
        records.write_records(study, tmp_path, tmp_path / "records")
