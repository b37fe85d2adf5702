"""The page of a study: made from records alone, with published figures kept apart, and whole in a browser."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from stepopsd.experiments.published import ALFWORLD, SCORED, SEARCHQA, published
from stepopsd.experiments.report import report_from_arguments, theme
from stepopsd.experiments.study import plan, work
from stepopsd.experiments.study.knobs import settings
from stepopsd.experiments.study.page import write_study_page
from stepopsd.experiments.study.plot import draw_curves
from stepopsd.experiments.study.records import read_records, write_records
from tests.experiments.chromium import document, picture, require_chromium, widths
from tests.experiments.pages import browser_data
from tests.experiments.synthetic_runs import write_run

SOURCE = """
title: Two methods and a control
baseline: grpo
seeds: [0, 1]
environments:
  alfworld: {preset: demo, set: {model: {path: bundled}, optim: {updates: 4}}}
methods:
  grpo: {credit: {name: grpo}}
  gentle: {credit: {name: stepopsd, alpha_clip: 0.05, lambda_mix: 0.05}}
  strong: {credit: {name: stepopsd, alpha_clip: 0.5, lambda_mix: 0.5}}
  strong-exp: {credit: {name: stepopsd, alpha_clip: 0.5, lambda_mix: 0.5, weight_fn: exp}}
  shuffled: {credit: {name: stepopsd, control: shuffled_teacher}}
"""
PROBE = {
    "setting": {"length": 5, "groups": 10},
    "findings": {"understands": [
        {"method": "grpo", "share": {"estimate": 0.2, "low": 0.19, "high": 0.21}, "rows": 40,
         "agreement": {"estimate": math.nan, "low": math.nan, "high": math.nan}},
    ]},
}  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records of a study whose runs were made up and are gone."""
    root = tmp_path_factory.mktemp("study")
    (root / "small.yaml").write_text(SOURCE)
    study = plan.read_study(root / "small.yaml")
    for cell in study.cells:
        folder = root / "cells" / cell.name
        write_run(folder, method=cell.config.credit.name, seed=cell.seed, updates=4, every=2, games=6, turns=5)
        (folder / "config.yaml").write_text(_dumped(cell, root))
        (folder / work.DONE).write_text("{}")
    write_records(study, root, root / "records")
    shutil.rmtree(root / "cells")
    (root / "records" / "credit-probe-toy.json").write_text(json.dumps(PROBE))
    return root / "records"


def _dumped(cell, root):
    from stepopsd.train.config_io import dump_config

    return dump_config(cell.config_in(root))


@pytest.fixture(scope="module")
def page(records, tmp_path_factory):
    return report_from_arguments((str(records.parent),), out=tmp_path_factory.mktemp("page"))


def test_one_command_writes_the_same_page_again_from_records_alone(records, page, tmp_path):
    again = write_study_page(records, tmp_path, probes=[records / "credit-probe-toy.json"])
    assert again.read_bytes() == page.read_bytes()
    assert {p.name for p in page.parent.glob("*.png")} == {
        f"{name}-alfworld.png" for name in ("curves", "task_types", "spread", "knobs", "cost")
    }  # fmt: skip
    assert page.stat().st_size < 10_000_000


def test_page_shows_the_table_the_knobs_the_probe_and_what_is_published(page):
    text = re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))
    for expected in (
        "Two methods and a control", "10 training runs", "4 comparisons", "SDAR, arXiv 2605.15155", SCORED["a"],
        SCORED["b"], "largest change λ0·α", "credit-probe-toy", "20.0 %", "for orientation, not for comparison",
    ):  # fmt: skip
        assert expected in text, expected


def test_many_methods_get_a_chart_each_and_no_one_has_the_baselines_colour(records, tmp_path, monkeypatch):
    grids, figure = [], theme.figure
    monkeypatch.setattr(theme, "figure", lambda r, c, **options: grids.append((r, c)) or figure(r, c, **options))
    methods = read_records(records)["alfworld"]
    draw_curves(dict(list(methods.items())[:3]), tmp_path / "few.png", baseline="grpo")
    image = imread(draw_curves(methods, tmp_path / "many.png", baseline="grpo"))
    assert grids == [(1, 2), (2, 4)], "two panels beside each other, or below with a chart for each of four methods"
    for row in np.array_split(image[:-60, :, :3], 2):
        assert all((cell.max(axis=2) - cell.min(axis=2) > 0.2).any() for cell in np.array_split(row, 4, axis=1))
    colours = [theme.colour(index) for index in range(16)]
    assert len(set(colours)) == 16
    assert theme.colour(16) == colours[1]


def test_published_rows_are_marked_and_carry_their_scoring(page):
    rows = re.findall(r'<tr class="quoted">(.*?)</tr>', page.read_text(encoding="utf-8"))
    assert len(rows) == len(published("alfworld"))
    assert all(re.search(r"<sup>[ab]</sup>", row) for row in rows)
    assert "75.0" in rows[6]


def test_published_figures_agree_with_themselves():
    for world, names in (("alfworld", ALFWORLD), ("searchqa", SEARCHQA)):
        for row in published(world):
            assert set(row.values) <= set(names)
            assert set(row.scored) <= set(SCORED)
    for row in published("searchqa"):
        if row.scored not in ("c", "d"):
            continue
        sets = [row.values[name] for name in SEARCHQA[:-1]]
        assert sum(sets) / 7 == pytest.approx(row.values["macro"], abs=0.11), row
        if row.corrected is not None:
            right = row.corrected["bamboogle"] * 1.25
            assert right == pytest.approx(round(right), abs=0.07)
            batches = ((round(right) - last) / 124 / 2 + last / 2 for last in (0, 1))
            assert min(abs(100 * b - row.values["bamboogle"]) for b in batches) < 0.06, row
            mean = (sum(sets[:-1]) + row.corrected["bamboogle"]) / 7
            assert mean == pytest.approx(row.corrected["macro"], abs=0.11), row
    assert published("elsewhere") == []


def test_knobs_leave_controls_and_other_variants_out(records):
    methods = read_records(records)["alfworld"]
    points = {p.method: p for p in settings(methods, "grpo", "seen")}
    assert points.keys() == {"gentle", "strong"}
    assert points["gentle"].saturates_at == pytest.approx(math.log(1.05 / 0.95))
    assert points["strong"].most == 0.25


def test_a_trajectory_opens_beside_what_grpo_made_of_it(page):
    data = browser_data(page)
    start = data["start"]
    group = data["runs"][start["run"]]["groups"][start["group"]]
    left, right = start["panes"]
    assert left["member"] == right["member"]
    assert [group["credits"][pane["credit"]] for pane in (left, right)] == ["grpo", "as trained"]
    assert {"grpo", "gentle", "strong", "strong-exp", "rlsd", "gigpo"} < set(group["credits"])
    assert dict(group["absent"])["shuffled"].startswith("is a control")
    assert len(data["runs"]) == 5, "the first seed of every method"


def test_page_is_whole_in_a_browser(page, tmp_path):
    require_chromium()
    shown = document(page, width=1280)
    assert 'data-ready="yes"' in shown
    assert "data-script-error" not in shown
    assert len(re.findall(r'<span class="t[ "]', shown)) == 2 * 5 * 12
    assert widths(page, (390, 1280)) == {390: (390, 390), 1280: (1280, 1280)}
    image = picture(page, tmp_path / "p.png", width=1280)
    assert 0.02 < (image.min(axis=2) < 0.85).mean() < 0.7


def test_what_is_no_study_or_not_alone_is_refused(records, tmp_path):
    (tmp_path / "begun" / "cells").mkdir(parents=True)
    with pytest.raises(ValueError, match="no records: run stepopsd study table first"):
        report_from_arguments((str(tmp_path / "begun"),))
    with pytest.raises(ValueError, match="a study is reported alone"):
        report_from_arguments((str(records), "GRPO=runs/grpo"))
    (tmp_path / "probe.json").write_text("[]")
    with pytest.raises(ValueError, match=r"probe\.json is not a result of the credit probe"):
        report_from_arguments((str(records),), out=tmp_path, probe=(tmp_path / "probe.json",))
