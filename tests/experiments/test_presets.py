"""Presets: what they resolve to, where each value comes from, and one update of each on real games."""

from __future__ import annotations

import json
import os
import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from stepopsd import cli
from stepopsd.envs.alfworld.games import OFFICIAL_SPLITS
from stepopsd.experiments.preset import from_arguments, preset_names, preset_path
from stepopsd.experiments.sft import FitConfig, WeightedRow, fit
from stepopsd.text.chat import ChatFormat
from stepopsd.train.config import ModelConfig
from stepopsd.train.config_io import differences, to_tree
from stepopsd.train.policy import load_policy
from tests.experiments.tiny_chat import TEXTS, save_tiny
from tests.extras import missing

MODELS = {"qwen2.5-3b": ("Qwen/Qwen2.5-3B-Instruct", "qwen2"), "qwen3-1.7b": ("Qwen/Qwen3-1.7B", "qwen3")}
#: Every line of the published settings for ALFWorld: the paper's own, then SDAR's scripts and the defaults under them.
PUBLISHED = {
    "rollout.groups": 16,
    "rollout.group_size": 8,
    "rollout.max_prompt_tokens": 2048,
    "rollout.max_response_tokens": 512,
    "optim.lr": 1e-6,
    "optim.warmup_updates": 0,
    "optim.weight_decay": 0.01,
    "optim.betas": [0.9, 0.999],
    "optim.minibatch_rows": 256,
    "optim.minibatch_groups": 0,
    "optim.epochs": 1,
    "optim.updates": 150,
    "optim.max_grad_norm": 1.0,
    "loss.name": "grpo",
    "loss.kl_coef": 0.01,
    "loss.kl_reference": "start",
    "loss.entropy_coef": 0.001,
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.2,
    "loss.dual_clip": 3.0,
    "loss.aggregation": "token_mean",
    "loss.invalid_action_penalty": 0.1,
    "loss.reward_scale": 10.0,
    "env.name": "alfworld",
    "env.games": "$ALFWORLD_DATA",
    "env.train_split": "train",
    "env.train_games": 0,
    "env.max_steps": 50,
    "env.history": 2,
    "env.think": True,
    "env.prompt_style": "full",
    "env.invalid": "format",
    "rollout.context": "turn",
    "rollout.temperature": 1.0,
    "credit.divide_by_std": True,
    "credit.dynamic_sampling": "off",
    "eval.every": 5,
    "eval.samples": 1,
    "eval.temperature": 0.4,
}
PUBLISHED_STEPOPSD = {
    "credit.span": "action_only",
    "credit.weight_fn": "sigmoid",
    "credit.lambda_decay_updates": 50,
    "credit.step_norm": "equal_step_mean_abs",
    "credit.teacher": "stale",
    "credit.teacher_refresh_every": 10,
    "credit.hindsight.label": True,
    "credit.hindsight.peer": True,
    "credit.hindsight.placement": "suffix",
    "credit.hindsight.rows_without_peer": "score",
}
#: Where the lineage's choice is an option and another one the default: key -> (ours, the lineage's).
DEVIATIONS = {
    "env.eval_splits": (("seen", "unseen"), ("seen",)),
    "env.think_check": ("auto", "always"),
    "credit.statistics": ("trajectory", "row"),
    "optim.duplicate_rows_to": (0, 256),
    "eval.panel": ("fixed", "draw"),
    "eval.games": (0, 128),
}
TRAINED = [name for name in preset_names() if name.startswith("alfworld/q")]


def resolve(*args):
    resolved, rest = from_arguments(args)
    assert not rest
    return resolved


def family(name):
    return next(value for key, value in MODELS.items() if key in name)


def test_each_model_has_grpo_and_stepopsd():
    wanted = {f"alfworld/{model}-{method}" for model in MODELS for method in (
        "grpo", "stepopsd", "stepopsd-reduced-clip", "stepopsd-gentle")}  # fmt: skip
    assert set(TRAINED) == wanted
    assert set(preset_names()) >= {*wanted, "alfworld/published", "demo"}


@pytest.mark.parametrize("name", TRAINED)
def test_presets_name_their_model_and_knobs(name):
    run = resolve("--preset", name).config
    assert run.model.path == family(name)[0]
    assert run.run_dir == f"runs/{name}"
    knobs = (run.credit.alpha_clip, run.credit.lambda_mix)
    if name.endswith("grpo"):
        assert run.credit.name == "grpo"
        return
    expected = {"stepopsd": (0.2, 0.2), "clip": (0.05, 0.2), "gentle": (0.05, 0.05)}
    assert knobs == expected[name.rsplit("-", 1)[1]]
    assert run.credit.name == "stepopsd"


@pytest.mark.parametrize("name", TRAINED)
def test_every_published_line_holds_and_deviations_are_named(name):
    ours, theirs = resolve("--preset", name).config, resolve("--preset", name, "--preset=alfworld/published").config
    assert differences(ours, theirs) == DEVIATIONS
    values = values_of(to_tree(ours))
    expected = {**PUBLISHED, **(PUBLISHED_STEPOPSD if "stepopsd" in name else {})}
    assert {key: values[key] for key in expected} == expected
    assert not set(expected) & set(DEVIATIONS)
    thinking = "off" if "qwen3" in name else "auto"  # SDAR: enable_thinking=False
    assert ours.env.template_thinking == thinking


def values_of(tree, prefix=""):
    """Dotted key -> value."""
    nested = (values_of(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v} for k, v in tree.items())
    return {key: value for part in nested for key, value in part.items()}


def sources_of(text):
    """Dotted key -> the comment beside its value in a dry run."""
    sources, above = {}, []
    for line in text.splitlines():
        if line.startswith("#"):
            continue  # the estimate
        depth = (len(line) - len(line.lstrip())) // 2
        above[depth:] = [line.split(":")[0].strip()]
        if not line.endswith(":"):
            sources[".".join(above)] = line.partition("  # ")[2]
    return sources


def test_dry_run_prints_every_value_with_its_source(capsys, tmp_path):
    args = ["train", "--preset", "alfworld/qwen3-1.7b-stepopsd-gentle", "--credit.lambda-mix", "0.1", "--dry-run"]
    assert cli.main(args) == 0
    text = capsys.readouterr().out
    sources = sources_of(text)
    assert all(sources.values())
    assert sources["credit.lambda_mix"] == "command line"
    assert sources["credit.alpha_clip"] == "preset alfworld/parts/gentle: paper, run with both knobs at 0.05"
    assert sources["optim.lr"] == "preset alfworld/parts/common: SDAR"
    assert sources["rollout.batch_size"] == "default"
    assert yaml.safe_load(text)["credit"]["lambda_mix"] == 0.1


def test_no_number_of_a_preset_is_without_a_reason():
    for name in TRAINED:
        resolved = resolve("--preset", name)
        unexplained = [key for key, source in resolved.sources.items() if ":" not in source]
        assert set(unexplained) <= {"run_dir", "env.name", "credit.name", "loss.name"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--preset", "alfworld/qwen3-grpo"], "unknown preset alfworld/qwen3-grpo; did you mean alfworld/qwen3-1.7b"),
        (["--preset", "zzz"], "known presets: alfworld/published, "),
        (["--preset"], "--preset needs the name of a preset"),
        (["--config", "--dry-run"], "--config needs the path of a YAML file"),
        (["--config", "nowhere.yaml"], "no such file: nowhere.yaml"),
    ],
)
def test_wrong_names_print_one_line(args, message, capsys):
    assert cli.main(["train", *args]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_unknown_fields_stop_the_command(capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["train", "--preset", "demo", "--credit.lamda-mix", "0.1", "--dry-run"])
    assert "--credit.lambda-mix" in capsys.readouterr().err
    (tmp_path / "own.yaml").write_text("credit: {lamda_mix: 0.1}\n")
    assert cli.main(["train", "--config", str(tmp_path / "own.yaml")]) == 1
    assert "own.yaml: unknown config key credit.lamda_mix; did you mean lambda_mix?" in capsys.readouterr().err


# One update of each: on the official games where they are, else on the bundled ones

needs_engine = pytest.mark.skipif(find_spec("alfworld") is None, reason=missing("alfworld"))
OFFICIAL = Path(os.environ.get("ALFWORLD_DATA", "")) / "json_2.1.1"
#: Sizes alone: 16 x 8 episodes of 50 steps are for a GPU.
SMALL = [
    "--optim.updates", "1", "--rollout.groups", "2", "--rollout.group-size", "3", "--env.max-steps", "4",
    "--rollout.max-response-tokens", "24", "--eval.games", "2", "--env.workers", "0", "--transcripts-every", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family -> random model that was shown the answer's form for seconds, so that only some actions are valid."""

    @cache
    def make(kind):
        folder = save_tiny(kind, tmp_path_factory.mktemp(kind))
        policy = load_policy(ModelConfig(str(folder)), "cpu")
        chat, rng, rows = ChatFormat(policy.tokenizer, enable_thinking=False), random.Random(0), []
        for _ in range(600):
            prompt = chat.opening(" ".join(rng.choices(TEXTS[0].split(), k=rng.randrange(5, 260))))
            answer = chat.response(rng.choice(("<think>so</think><action>look</action>", "<action>look</action>")))
            rows.append(WeightedRow(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer)))
        fit(policy.model, rows, FitConfig(epochs=1, lr=1e-2, warmup_steps=5), pad_id=policy.pad_id, say=str)
        policy.model.save_pretrained(folder)
        return folder

    return make


def one_update(name, models, folder, *more):
    splits = ["seen", "unseen"]
    if OFFICIAL.is_dir():
        splits = [ours for ours in splits if (OFFICIAL / OFFICIAL_SPLITS[ours]).is_dir()]
    else:
        more = (*more, "--env.games", "bundled")
    model = models(family(name)[1])
    out = folder / name.replace("/", "-")
    args = ["--preset", name, *more, "--model.path", str(model), "--run-dir", str(out), "--device", "cpu"]
    assert cli.main(["train", *args, "--env.eval-splits", *splits, *SMALL]) == 0
    [record] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluated = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
    assert len(evaluated) == 2 * 2 * len(splits)
    assert record["sampler_gap_max"] < 1e-4
    assert record["env_failures"] == 0
    assert 0 < record["invalid_share"] < 1
    saved = load_policy(ModelConfig(str(out / "checkpoints/update-000001/policy")), "cpu")
    before = load_policy(ModelConfig(str(model)), "cpu")
    pairs = zip(saved.model.parameters(), before.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    return record


@needs_engine
@pytest.mark.parametrize(
    "name", [n if n.endswith(("grpo", "stepopsd")) else pytest.param(n, marks=pytest.mark.slow) for n in TRAINED]
)
def test_one_update_of_each_preset_on_real_games(name, models, tmp_path):
    record = one_update(name, models, tmp_path)
    if "stepopsd" in name:
        run = resolve("--preset", name).config
        assert record["lambda"] == pytest.approx(run.credit.lambda_mix * 0.98)
        assert record["delta/count"] > 0
        assert record["teacher/label_only"] > 0
        assert record["weight/at_low"] >= 0


@needs_engine
@pytest.mark.slow
def test_published_overlay_trains_too(models, tmp_path):
    overlay = ["--preset", "alfworld/published", "--optim.duplicate-rows-to", "32"]
    record = one_update("alfworld/qwen2.5-3b-grpo", models, tmp_path, *overlay)
    assert record["update"] == 1


def test_presets_are_packaged():
    pattern = "presets/**/*.yaml"
    assert f'"{pattern}"' in (Path(cli.__file__).parents[1] / "pyproject.toml").read_text()
    assert preset_path("alfworld/published").is_file()
