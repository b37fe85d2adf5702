"""Study files: what they spell out, and how mistakes in them are told."""

from __future__ import annotations

import pytest

from stepopsd.experiments.study import command, plan
from tests.experiments.study.conftest import SOURCE, read


def test_cells_are_the_product_with_seeds_outermost(study):
    assert [cell.name for cell in study.cells[:3]] == ["toy/grpo/seed-0", "toy/stepopsd/seed-0", "toy/grpo/seed-1"]
    assert len(study.cells) == 6
    cell = study.cells[3]
    assert (cell.config.seed, cell.config.credit.name, cell.config.credit.lambda_mix) == (1, "stepopsd", 0.1)
    assert cell.config.optim.generated_tokens == 1000
    assert cell.config.env.max_steps == 20, "from the preset"


def test_methods_do_not_leak_into_each_other(tmp_path):
    changed = SOURCE + "  plain: {credit: {hindsight: {label: false}}}\n  last: {}\n"
    study = read(tmp_path, changed)
    told = {cell.method: cell.config.credit.hindsight.label for cell in study.cells}
    assert told == {"grpo": True, "stepopsd": True, "plain": False, "last": True}


def test_a_method_may_run_on_some_environments_only(tmp_path):
    source = SOURCE.replace("methods:", "  other: {preset: demo}\nonly: {stepopsd: [other]}\nmethods:")
    names = [cell.name for cell in read(tmp_path, source).cells if cell.seed == 0]
    assert names == ["toy/grpo/seed-0", "other/grpo/seed-0", "other/stepopsd/seed-0"]


def test_shipped_studies_resolve():
    shipped = sorted(plan.STUDIES.glob("*.yaml"))
    assert shipped
    for file in shipped:
        study = plan.read_study(file)
        assert len(study.seeds) >= 3, f"{file.name}: fewer seeds are no evidence"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", "seeds must be different whole numbers"),
        ("seeds: [0, 1, 2]", "seed: [0]", "did you mean seeds"),
        ("baseline: grpo", "baseline: gspo", "baseline must be one of grpo, stepopsd"),
        ("lambda_mix: 0.1", "lambda_mix: 1.5", "toy, stepopsd: credit.lambda_mix"),
        ("lambda_mix: 0.1", "lambda_mixx: 0.1", "unknown config key credit.lambda_mixx"),
        ("  grpo: {}", "  'a/b': {}", "names must be letters"),
        ("preset: demo, set", "presets: demo, set", "must have a preset"),
        ("generated_tokens: 1000", "generated_tokens: -5", "generated_tokens"),
        ("methods:", "only: {grpo: [nowhere]}\nmethods:", "only must list environments"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, old, new, said):
    assert old in SOURCE
    with pytest.raises(ValueError, match=said):
        read(tmp_path, SOURCE.replace(old, new))


def test_unknown_study_names_those_that_exist():
    with pytest.raises(FileNotFoundError, match="cpu"):
        plan.study_path("no-such-study")


@pytest.mark.parametrize("name", [file.stem for file in sorted(plan.STUDIES.glob("*.yaml"))])
def test_every_study_that_comes_with_the_package_resolves(name):
    study = plan.read_study(plan.study_path(name))
    assert len(study.seeds) >= 3
    assert {cell.environment for cell in study.cells} == set(study.environments)


def test_the_papers_grid_is_whole():
    study = plan.read_study(plan.study_path("paper"))
    assert len(study.cells) == 14 * 3 * 4
    cells = {cell.method: cell.config for cell in study.cells if cell.environment == "alfworld-qwen3-1.7b"}
    knobs = {(c.credit.alpha_clip, c.credit.lambda_mix) for n, c in cells.items() if n.startswith(("a0", "stress"))}
    assert knobs == {(0.05, 0.05), (0.05, 0.2), (0.2, 0.05), (0.2, 0.2), (0.5, 0.5)}
    assert {c.credit.step_norm for c in cells.values()} == {"equal_step_mean_abs", "equal_step_ratio", "none"}
    assert cells["wrong-hint"].credit.hindsight.peer_of == "other"
    assert not cells["label-only"].credit.hindsight.peer
    assert {c.model.path for c in cells.values()} == {"Qwen/Qwen3-1.7B"}
    assert {c.optim.updates for c in cells.values()} == {150}


def test_a_part_of_a_study_is_picked_by_pattern(tmp_path, capsys):
    command.status("paper", out=tmp_path, cells_like="alfworld-*/wrong-hint/*")
    told = capsys.readouterr().out
    assert told.count("waiting") == 6
    assert "0 of 6 done" in told
    with pytest.raises(ValueError, match=r"must match a cell such as alfworld-qwen3-1\.7b/grpo/seed-0, got 'x'"):
        command.status("paper", out=tmp_path, cells_like="x")
