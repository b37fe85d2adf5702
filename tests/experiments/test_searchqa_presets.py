"""The Search-QA presets resolve to the published settings, line by line, and leave them in named keys alone."""

from __future__ import annotations

import json

import pytest

from stepopsd import cli
from stepopsd.envs.searchqa import EVALUATION_SETS
from stepopsd.envs.searchqa.world import bundled_passages
from stepopsd.experiments.preset import from_arguments, preset_names
from stepopsd.train.config_io import differences, to_tree
from stepopsd.train.search import search_rules
from tests.train.search_toy import save_model

MODELS = {"qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct", "qwen3-1.7b": "Qwen/Qwen3-1.7B"}
KNOBS = {"stepopsd": (0.2, 0.2), "stepopsd-reduced-clip": (0.05, 0.2), "stepopsd-gentle": (0.05, 0.05)}
TRAINED = [f"searchqa/{model}-{method}" for model in MODELS for method in ("grpo", *KNOBS)]
#: Every line of the published settings for Search-QA: the paper's own, then SDAR's scripts and the defaults under them.
PUBLISHED = {
    "rollout.groups": 128, "rollout.group_size": 8, "rollout.max_prompt_tokens": 4096,
    "rollout.max_response_tokens": 512, "rollout.temperature": 1.0, "rollout.context": "turn",
    "optim.lr": 1e-6, "optim.warmup_updates": 15, "optim.updates": 150, "optim.epochs": 1, "optim.max_grad_norm": 1.0,
    "optim.minibatch_rows": 256, "optim.minibatch_groups": 0, "optim.weight_decay": 0.01, "optim.betas": [0.9, 0.999],
    "loss.name": "grpo", "loss.clip_low": 0.2, "loss.clip_high": 0.2, "loss.dual_clip": 3.0,
    "loss.aggregation": "token_mean", "loss.kl_coef": 0.001, "loss.kl_reference": "start", "loss.entropy_coef": 0.001,
    "loss.invalid_action_penalty": 0.01, "loss.reward_scale": 1.0,
    "credit.divide_by_std": True, "credit.dynamic_sampling": "off",
    "env.name": "searchqa", "env.train_split": "train", "env.train_games": 0, "env.history": 4, "env.think": True,
    "env.prompt_style": "full", "env.eval_splits": list(EVALUATION_SETS),
    "env.search.top_k": 3, "env.search.max_searches": 4, "env.search.final_answer_turn": False,
    "env.search.metric": "em", "env.search.stop_at_action": False,
    "eval.every": 0, "eval.temperature": 0.0, "eval.samples": 1, "eval.panel": "fixed",
}  # fmt: skip
PUBLISHED_STEPOPSD = {
    "credit.span": "clean_step_no_observation", "credit.weight_fn": "sigmoid", "credit.lambda_decay_updates": 50,
    "credit.step_norm": "equal_step_mean_abs", "credit.teacher": "stale", "credit.teacher_refresh_every": 10,
    "credit.hindsight.label": True, "credit.hindsight.peer": True, "credit.hindsight.placement": "suffix",
    "credit.hindsight.rows_without_peer": "score",
}  # fmt: skip
#: Where the lineage's choice is an option and another one the default: key -> (ours, the lineage's).
DEVIATIONS = {
    "credit.statistics": ("trajectory", "row"),
    "optim.duplicate_rows_to": (0, 64),
    "eval.games": (500, 0),
}


def resolve(*args):
    resolved, rest = from_arguments(args)
    assert not rest
    return resolved


def values_of(tree, prefix=""):
    """Dotted key -> value."""
    nested = (values_of(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v} for k, v in tree.items())
    return {key: value for part in nested for key, value in part.items()}


def test_each_model_has_grpo_and_stepopsd():
    overlays = {"searchqa/published", "searchqa/search-r1", "searchqa/demo"}
    assert {name for name in preset_names() if name.startswith("searchqa/")} - overlays == set(TRAINED)


@pytest.mark.parametrize("name", TRAINED)
def test_every_published_line_holds_and_deviations_are_named(name):
    ours, theirs = resolve("--preset", name).config, resolve("--preset", name, "--preset=searchqa/published").config
    assert differences(ours, theirs) == DEVIATIONS
    values = values_of(to_tree(ours))
    stepopsd = "stepopsd" in name
    expected = {**PUBLISHED, **(PUBLISHED_STEPOPSD if stepopsd else {})}
    assert {key: values[key] for key in expected} == expected
    assert not set(expected) & set(DEVIATIONS)
    model, method = next((m, name.split(f"{m}-")[1]) for m in MODELS if m in name)
    assert (ours.model.path, ours.credit.name) == (MODELS[model], method.split("-")[0])
    assert ours.run_dir == f"runs/{name}"
    assert ours.env.template_thinking == ("off" if "qwen3" in name else "auto")  # SDAR: enable_thinking=False
    if stepopsd:
        assert (ours.credit.alpha_clip, ours.credit.lambda_mix) == KNOBS[method]


def test_no_number_of_a_preset_is_without_a_reason():
    for name in TRAINED:
        resolved = resolve("--preset", name, "--preset", "searchqa/published", "--preset", "searchqa/search-r1")
        unexplained = [key for key, source in resolved.sources.items() if ":" not in source]
        assert set(unexplained) <= {"run_dir", "env.name", "credit.name", "loss.name"}


def test_methods_of_a_model_differ_in_credit_alone():
    for model in MODELS:
        grpo = resolve("--preset", f"searchqa/{model}-grpo").config
        for method in KNOBS:
            changed = differences(grpo, resolve("--preset", f"searchqa/{model}-{method}").config)
            assert {key.split(".")[0] for key in changed} == {"run_dir", "credit"}


def test_both_layouts_have_their_budget_of_calls():
    windowed = resolve("--preset", "searchqa/qwen2.5-3b-grpo").config
    dialogue = resolve("--preset", "searchqa/qwen2.5-3b-grpo", "--preset", "searchqa/search-r1").config
    assert (windowed.rollout.context, search_rules(windowed.env.search).max_turns) == ("turn", 4)
    assert (dialogue.rollout.context, search_rules(dialogue.env.search).max_turns) == ("dialogue", 5)
    assert windowed.optim.warmup_updates == 0.1 * windowed.optim.updates


def test_dry_run_names_the_source_of_each_value(capsys):
    assert cli.main(["train", "--preset", "searchqa/qwen3-1.7b-stepopsd-gentle", "--seed", "3", "--dry-run"]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "kl_coef: 0.001 # preset searchqa/parts/common: SDAR, low-variance KL" in said
    assert "alpha_clip: 0.05 # preset searchqa/parts/gentle: paper, run with both knobs at 0.05" in said
    assert "seed: 3 # command line" in said


#: Sizes alone, and the world that ships in place of the real questions and their server.
SMALL = [
    "--optim.updates", "1", "--rollout.groups", "2", "--rollout.group-size", "3", "--rollout.max-response-tokens", "12",
    "--eval.games", "2", "--env.search.data", "bundled", "--env.search.retriever", "bundled", "--device", "cpu",
    "--env.eval-splits", "world_nq", "world_bamboogle", "--env.prompt-style", "compact",
    "--rollout.max-prompt-tokens", "1000",
]  # fmt: skip


@pytest.mark.parametrize("overlay", ["published", "search-r1"])
def test_one_update_of_the_presets_on_the_bundled_world(overlay, tmp_path):
    model = save_model(tmp_path / "model", bundled_passages())
    name = "searchqa/qwen3-1.7b-stepopsd"
    args = ["--preset", name, "--preset", f"searchqa/{overlay}", "--model.path", str(model)]
    assert cli.main(["train", *args, "--run-dir", str(tmp_path / "run"), *SMALL]) == 0
    [record] = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["sampler_gap_max"] < 1e-4
    assert record["env_failures"] == 0
    evaluated = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in evaluated} == {"world_nq", "world_bamboogle"}
