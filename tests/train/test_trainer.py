"""Whole runs on a word game: identities that hold bit for bit, resuming, learning, and what a run leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from stepopsd.envs.pool import InlinePool
from stepopsd.train import episodes
from stepopsd.train.checkpoint import checkpoints
from stepopsd.train.metrics import JsonLines
from stepopsd.train.progress import Progress
from stepopsd.train.trainer import Trainer
from tests.train.conftest import make_policy
from tests.train.toy import TASKS, config


def train(run):
    trainer = Trainer(run)
    trainer.run()
    return trainer


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.model.parameters()])


def log(trainer, name="metrics"):
    return [json.loads(line) for line in (trainer.run_dir / f"{name}.jsonl").read_text().splitlines()]


def test_zero_lambda_trains_to_the_bits_of_grpo(model, tmp_path):
    grpo = train(config(tmp_path / "a", model, credit={"name": "grpo"}))
    options = {"name": "stepopsd", "lambda_mix": 0.0, "diagnose_every": 1}
    same = train(config(tmp_path / "b", model, credit=options))
    shaped = train(config(tmp_path / "c", model, credit={**options, "lambda_mix": 1.0, "alpha_clip": 0.9}))
    assert any(r["mixed_groups"] > 0 for r in log(grpo))
    assert any(r["delta/std"] > 0 for r in log(same) if "delta/std" in r)
    assert torch.equal(parameters(grpo), parameters(same))
    assert not torch.equal(parameters(grpo), parameters(shaped))


def test_a_run_ends_with_the_update_that_reaches_its_tokens(model, tmp_path):
    whole = config(tmp_path / "whole", model, optim={"updates": 6})
    tokens = [r["tokens/generated"] for r in log(train(whole))]
    budget = sum(tokens[:3]) - 1
    short = replace(whole, run_dir=str(tmp_path / "short"), optim=replace(whole.optim, generated_tokens=budget))
    ended = train(short)
    assert [r["tokens/generated"] for r in log(ended)] == tokens[:3]
    assert max(r["update"] for r in log(ended, "evaluations")) == 3
    assert checkpoints(ended.run_dir)[-1].name.endswith("3")
    assert len(log(train(short))) == 3, "the same command finds it finished"
    more = train(replace(short, optim=replace(short.optim, generated_tokens=sum(tokens[:4]))))
    assert [r["tokens/generated"] for r in log(more)] == tokens[:4]


def test_next_updates_episodes_are_announced_while_this_one_trains(model, tmp_path, monkeypatch):
    """Not before an evaluation, which plays others first, nor after the last update."""
    said = []

    class Listening(InlinePool):
        def reset(self, starts):
            said.append(("reset", list(starts.values())))
            return super().reset(starts)

        def prefetch(self, upcoming):
            if upcoming:
                said.append(("announced", list(upcoming)))

    monkeypatch.setattr(episodes, "InlinePool", Listening)
    train(config(tmp_path / "run", model, optim={"updates": 4}, eval={"every": 3, "games": 2, "temperature": 1.0}))
    announced = [index for index, (kind, _) in enumerate(said) if kind == "announced"]
    assert len(announced) == 2, "after updates 1 and 2"
    for index in announced:
        assert said[index + 1] == ("reset", said[index][1])


@pytest.mark.parametrize("context", ["dialogue", "turn"])
def test_resumed_run_equals_uninterrupted_run(model, tmp_path, context):
    credit = {"name": "stepopsd", "teacher_refresh_every": 2, "lambda_mix": 1.0, "alpha_clip": 0.9}
    whole = config(tmp_path / "whole", model, credit=credit, rollout={
        "context": context, "groups": 4, "group_size": 4, "max_prompt_tokens": 100, "max_response_tokens": 4,
    }, optim={"updates": 6}, loss={"kl_coef": 0.01})  # fmt: skip
    uninterrupted = train(whole)
    first = replace(whole, run_dir=str(tmp_path / "parts"), optim=replace(whole.optim, updates=3))
    train(first)
    resumed = train(replace(first, optim=replace(whole.optim, updates=6)))
    assert torch.equal(parameters(uninterrupted), parameters(resumed))
    assert [r["update"] for r in log(resumed)] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(log(uninterrupted), log(resumed), strict=True):
        assert a["loss"] == b["loss"]
        assert a.get("delta/std") == b.get("delta/std")


@pytest.mark.parametrize("old_logprobs", ["recompute", "sampled"])
def test_sampler_and_trainer_agree(model, tmp_path, old_logprobs):
    trainer = train(config(tmp_path / "run", model, optim={"old_logprobs": old_logprobs}))
    gaps = [r["sampler_gap_max"] for r in log(trainer)]
    assert 0 < max(gaps) < 1e-4


def test_without_advantage_nothing_moves(model, tmp_path):
    trainer = train(config(tmp_path / "run", model, env={"max_steps": 1}))  # nobody can win in one step
    before = make_policy().model.state_dict()
    for name, value in trainer.policy.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_microbatches_do_not_change_the_update(model, tmp_path):
    a, b = (
        train(config(tmp_path / str(tokens), model, optim={"updates": 1, "microbatch_tokens": tokens, "lr": 1e-4}))
        for tokens in (40, 100_000)
    )
    torch.testing.assert_close(parameters(a), parameters(b), atol=2e-5, rtol=0)


def test_it_learns_the_word(model, tmp_path):
    options = {"optim": {"updates": 25, "lr": 5e-3}, "rollout": {"groups": 8, "group_size": 8}}
    trainer = train(config(tmp_path / "run", model, **options))
    success = [r["success"] for r in log(trainer)]
    assert sum(success[:3]) / 3 < 0.6
    assert sum(success[-3:]) / 3 > 0.9


def test_shuffled_advantages_are_dealt_to_other_rows(model, tmp_path):
    plain = train(config(tmp_path / "a", model, optim={"updates": 1}))
    shuffled = train(config(tmp_path / "b", model, optim={"updates": 1}, credit={"control": "shuffled_advantages"}))
    assert not torch.equal(parameters(plain), parameters(shuffled))
    assert log(plain)[0]["advantage/std"] == pytest.approx(log(shuffled)[0]["advantage/std"], rel=1e-5)


def test_run_directory_holds_the_evidence(model, tmp_path):
    trainer = train(config(tmp_path / "run", model, credit={"name": "stepopsd"}, transcripts_every=1))
    assert {p.name for p in trainer.run_dir.iterdir()} >= {
        "config.yaml", "environment.json", "metrics.jsonl", "evaluations.jsonl", "transcripts.jsonl", "checkpoints",
    }  # fmt: skip
    panels = log(trainer, "evaluations")
    assert [(r["update"], r["task_id"]) for r in panels] == [(u, t) for u in (0, 3) for t in ("game-0", "game-4")]
    turn = log(trainer, "transcripts")[0]["turns"][0]
    lengths = {len(turn[key]) for key in ("tokens", "logprobs", "advantages", "shaped", "delta", "weights", "in_span")}
    assert len(lengths) == 1
    facts = json.loads((trainer.run_dir / "environment.json").read_text())
    assert facts["torch"] == torch.__version__


def test_training_games_are_a_fixed_part_of_the_split(model, tmp_path):
    run = config(tmp_path / "run", model, env={"train_games": 2, "eval_splits": ["train", "seen"]}, eval={"games": 0})
    trainer = train(run)
    played = [{r["task_id"] for r in log(trainer, "evaluations") if r["panel"] == name} for name in ("train", "seen")]
    assert played == [{"game-0", "game-4"}, {t.task_id for t in TASKS}]


@pytest.mark.parametrize("between_updates", [True, False])
def test_interrupted_run_continues_to_the_same_end(model, tmp_path, monkeypatch, between_updates):
    run = config(tmp_path / "run", model, optim={"updates": 4}, checkpoint_every=2)
    whole = train(replace(run, run_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        # the optimiser has moved when an update's record is written, so that state must not be saved
        target = Progress.update if between_updates else JsonLines.append
        patch.setattr(Progress if between_updates else JsonLines, target.__name__, _interrupt_at(target, 3))
        with pytest.raises(KeyboardInterrupt):
            Trainer(run).run()
    saved = [path.name for path in checkpoints(tmp_path / "run")]
    assert saved == (["update-000002", "update-000003"] if between_updates else ["update-000002"])
    assert torch.equal(parameters(train(run)), parameters(whole))


def test_panels_that_an_interrupt_cut_short_are_played_again(model, tmp_path, monkeypatch):
    run = config(tmp_path / "run", model, env={"eval_splits": ["seen", "unseen"]}, eval={"every": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "evaluation", _interrupt_evaluation)
        with pytest.raises(KeyboardInterrupt):
            Trainer(run).run()
    trainer = train(run)
    played = [(r["update"], r["panel"]) for r in log(trainer, "evaluations")]
    assert played == [(u, p) for u in range(4) for p in ("seen", "unseen") for _ in range(2)]


def _interrupt_evaluation(self, update, name, by_kind):
    if update == 2:
        raise KeyboardInterrupt


def _interrupt_at(method, update):
    def wrapped(self, record):
        method(self, record)
        if record.get("update") == update:
            raise KeyboardInterrupt

    return wrapped


def test_resuming_under_another_configuration_is_refused(model, tmp_path):
    run = config(tmp_path / "run", model, optim={"updates": 1})
    train(run)
    changed = replace(run, optim=replace(run.optim, updates=2, lr=0.5))
    with pytest.raises(ValueError, match=r"optim\.lr was 0\.01 and is now 0\.5"):
        Trainer(changed).run()


def test_a_finished_run_is_not_overwritten_without_resume(model, tmp_path):
    run = config(tmp_path / "run", model, optim={"updates": 1})
    train(run)
    with pytest.raises(ValueError, match="already holds a run"):
        Trainer(replace(run, resume=False)).run()


def test_cuda_is_refused_where_there_is_none(model, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device is cuda"):
        Trainer(config(tmp_path / "run", model, device="cuda"))


def test_gaps_are_told_apart_by_hindsight_and_sign(model, tmp_path):
    options = {"name": "stepopsd", "teacher": "live"}
    for record in log(train(config(tmp_path / "run", model, credit=options))):
        cells = {k: v for k, v in record.items() if k.endswith(("/up/count", "/down/count"))}
        if not cells:  # no mixed group: nobody was asked
            continue
        assert sum(cells.values()) == record["delta/count"]
        assert ("delta/peer/down/count" in cells) == (record["mixed_groups"] > 0)
        assert "delta/peer/up/count" not in cells  # only failures have a peer
        assert record["teacher/untold"] == record["teacher/cut_tokens"] == 0
        assert 0 <= record["teacher/failed_with_peer"] <= 1


def test_rows_without_a_peer_can_be_left_alone(model, tmp_path):
    options = {"name": "stepopsd", "hindsight": {"rows_without_peer": "skip"}}
    records = log(train(config(tmp_path / "run", model, credit=options)))
    assert any(r["teacher/with_peer"] > 0 for r in records)
    assert all(r["teacher/label_only"] == 0 for r in records if "teacher/label_only" in r)
    assert all("delta/label/up/count" not in r for r in records)


def test_coupled_reference_moves_with_the_teacher(model, tmp_path):
    run = config(
        tmp_path / "free", model, credit={"name": "stepopsd", "lambda_mix": 0.0, "teacher_refresh_every": 1},
        loss={"kl_coef": 0.1}, optim={"updates": 4},
    )  # fmt: skip
    coupled = replace(run, run_dir=str(tmp_path / "coupled"), loss=replace(run.loss, kl_reference="teacher"))
    free, bound = log(train(run)), log(train(coupled))
    assert free[0]["kl"] == bound[0]["kl"] == 0.0  # both start at the starting policy
    assert free[3]["kl"] > 0
    # refreshed after every update, the anchor is the policy itself before its step
    assert all(record["kl"] == pytest.approx(0.0, abs=1e-6) for record in bound)
    half = replace(coupled, run_dir=str(tmp_path / "half"), optim=replace(run.optim, updates=2))
    train(half)
    assert not (tmp_path / "half/checkpoints/update-000002/reference.safetensors").exists()
    resumed = train(replace(half, optim=replace(run.optim, updates=4)))
    assert [r["loss"] for r in log(resumed)] == [r["loss"] for r in bound]


def test_coupled_reference_needs_a_stale_teacher(model, tmp_path):
    for credit in ({"name": "grpo"}, {"name": "stepopsd", "teacher": "live"}):
        with pytest.raises(ValueError, match=r"loss\.kl_reference=teacher needs a stale teacher"):
            config(tmp_path / "run", model, credit=credit, loss={"kl_reference": "teacher"})
