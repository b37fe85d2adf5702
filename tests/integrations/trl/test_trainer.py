"""The real GRPOTrainer with our credit: bit for bit TRL's where nothing is mixed, hand-computed where something is."""

from __future__ import annotations

import copy

import pytest
import torch

from stepopsd.options.credit import CreditConfig
from tests.extras import missing
from tests.integrations.trl.conftest import luck

trl = pytest.importorskip("trl", reason=missing("trl"))
from stepopsd.integrations.trl import StepOPSDGRPOTrainer  # noqa: E402

LOSSES = ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]
WHOLE = {"span": "clean_step_no_observation"}


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def trained(trainer):
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert any(not torch.equal(before[name], after[name]) for name in before), "nothing was learned"
    return after


@pytest.mark.parametrize(
    ("credit", "options"), [("stepopsd", {"lambda_mix": 0.0}), ("grpo", {}), ("rlsd", {"rlsd": {"lambda_mix": 0.0}})]
)
def test_without_mixing_the_parameters_are_those_of_the_stock_trainer(make, model, credit, options):
    stock = trained(make(trl.GRPOTrainer, model=copy.deepcopy(model)))
    ours = make(StepOPSDGRPOTrainer, model=copy.deepcopy(model), credit=credit, credit_options=options)
    for name, value in trained(ours).items():
        assert torch.equal(value, stock[name]), name


def captured(trainer):
    """Batches as the loss sees them."""
    seen = []
    inner = type(trainer)._compute_loss

    def compute_loss(model, inputs):
        loss = inner(trainer, model, inputs)
        seen.append({**inputs})
        return loss

    trainer._compute_loss = compute_loss
    return seen


def test_a_known_gap_gives_the_hand_computed_advantages_at_the_loss(make):
    options = {**WHOLE, "lambda_mix": 0.5, "lambda_decay_updates": 0, "step_norm": "none", "alpha_clip": 0.2}
    trainer = make(StepOPSDGRPOTrainer, credit="stepopsd", credit_options=options, config={"max_steps": 1})
    student = trainer.teacher.student

    def told(rows, width):  # Δ = 1 at even tokens, -1 at odd ones: every weight is at an edge of [0.8, 1.2]
        gap = torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0)
        return student(rows, width) + gap, {}

    trainer.teacher.teacher = told
    seen = captured(trainer)
    trainer.train()
    batch = seen[0]
    mask, advantages = batch["completion_mask"].bool(), batch["advantages"]
    ids = batch["completion_ids"]
    rewards = torch.tensor(luck([ids[i][mask[i]].tolist() for i in range(4)]))
    scalar = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    assert (scalar != 0).any()
    favoured = (torch.arange(mask.shape[1]) % 2 == 0)[None, :] == (scalar > 0)[:, None]
    hand = scalar[:, None] * torch.where(favoured, 1 + 0.5 * 0.2, 1 - 0.5 * 0.2)
    stop = ids == trainer.processing_class.eos_token_id  # a final stop id lies in no step
    hand = torch.where(stop, scalar[:, None].expand_as(hand), hand)
    assert advantages.shape == mask.shape
    torch.testing.assert_close(advantages, hand * mask, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_every_loss_takes_the_same_advantages_per_token(make, level):
    trainer = make(StepOPSDGRPOTrainer, credit="grpo", config={"max_steps": 1, "importance_sampling_level": level})
    seen = captured(trainer)
    trainer.train()
    del trainer._compute_loss
    batch = {**seen[0], "old_per_token_logps": None}
    trainer.current_gradient_accumulation_steps = 1
    scalar = batch["advantages"].clone()
    assert scalar.dim() == 1, "where credit changes nothing, TRL's own advantages stay"
    assert (scalar != 0).any()
    per_token = scalar[:, None] * batch["completion_mask"]
    for loss_type in LOSSES:
        trainer.loss_type = loss_type
        found = []
        for advantages in (scalar, per_token):
            trainer.model.zero_grad()
            loss = trainer._compute_loss(trainer.model, {**batch, "advantages": advantages})
            loss.backward()
            found.append((loss.detach(), trainer.model.model.layers[0].mlp.up_proj.weight.grad.clone()))
        assert torch.equal(found[0][0], found[1][0]), loss_type
        # A ratio per sequence sums its tokens before or after they meet the advantage.
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-7 if level == "sequence" else 0)


def test_every_loss_trains_with_shaped_advantages(make):
    trainer = make(
        StepOPSDGRPOTrainer, credit_options={**WHOLE, "step_norm": "none"}, success_reward=0.5,
        config={"max_steps": len(LOSSES), "epsilon_high": 5.0, "max_completion_length": 6},
    )  # fmt: skip
    seen = []

    class EveryLoss(type(trainer)):
        def _compute_loss(self, model, inputs):
            self.loss_type = LOSSES[len(seen)]
            seen.append(inputs["advantages"])
            return super()._compute_loss(model, inputs)

    trainer.__class__ = EveryLoss
    trained(trainer)
    assert [advantages.dim() for advantages in seen] == [2] * len(LOSSES)
    for logged in trainer.state.log_history[:-1]:
        assert logged["grad_norm"] > 0
        assert logged["credit/delta/count"] > 0
        assert logged["credit/weight/abs_change"] > 0


def scores(trainer, rows):
    return trainer.teacher.teacher(rows, 4)[0], trainer.teacher.student(rows, 4)


def test_a_stale_teacher_keeps_old_weights_and_catches_up_when_due(make):
    from stepopsd.integrations.teacher import HostRow

    silent = {"hindsight": {"label": False, "peer": False}}
    options = {**WHOLE, **silent, "teacher": "stale", "teacher_refresh_every": 2}
    trainer = make(StepOPSDGRPOTrainer, credit_options=options)
    rows = [HostRow([5, 6], [7, 8, 9, 10], [0, 0, 1, 1], True)]
    first, own = scores(trainer, rows)
    assert torch.equal(first, own), "a silent teacher with the same weights says the same"
    history = []
    trainer.teacher.refresh = lambda update, inner=trainer.teacher.refresh: history.append(
        (update, inner(update), *scores(trainer, rows))
    )
    trainer.train()
    assert [(update, due) for update, due, _, _ in history] == [(1, False), (2, True), (3, False)]
    assert torch.equal(history[0][2], first)
    assert not torch.equal(history[0][2], history[0][3])
    assert torch.equal(history[1][2], history[1][3])
    assert torch.equal(history[2][2], history[1][2])


def test_a_live_teacher_has_no_copy_and_says_more_only_with_a_block(make):
    from stepopsd.integrations.teacher import HostRow

    trainer = make(StepOPSDGRPOTrainer, credit_options={**WHOLE, "teacher": "live"})
    assert trainer.teacher.snapshot is None
    told, own = scores(trainer, [HostRow([5, 6], [7, 8, 9, 10], [0, -1, 1, 1], False, "1. look")])
    assert told[0].isnan().tolist() == [False, True, False, False]
    assert not torch.allclose(told[0, 2:], own[0, 2:], atol=1e-6)


def test_both_placements_see_the_block_and_rows_without_a_peer_can_be_skipped(make):
    from stepopsd.integrations.teacher import HostRow

    rows = [HostRow([5, 6], [7, 8], [0, 0], False, "1. look"), HostRow([5, 6], [7, 8], [0, 0], False)]
    found = {}
    for placement in ("suffix", "prefix"):
        told = {"placement": placement, "rows_without_peer": "skip"}
        trainer = make(StepOPSDGRPOTrainer, credit_options={**WHOLE, "teacher": "live", "hindsight": told})
        found[placement], counts = trainer.teacher.teacher(rows, 2)
        assert counts["teacher/with_peer"] == 1
        assert found[placement][1].isnan().all()
    assert not torch.allclose(found["suffix"][0], found["prefix"][0])


def test_failed_rows_of_mixed_groups_are_told_the_first_success(make):
    def pays(completion_ids, **kwargs):
        return [0.0, 1.0, 1.0, 0.0] * (len(completion_ids) // 4)

    trainer = make(StepOPSDGRPOTrainer, credit_options=WHOLE, rewards=[pays], config={"max_steps": 1})
    asked = []
    inner = trainer.teacher.teacher
    trainer.teacher.teacher = lambda rows, width: asked.extend(rows) or inner(rows, width)
    trainer.train()
    assert [row.success for row in asked] == [False, True, True, False]
    assert [row.peer is not None for row in asked] == [True, False, False, True]
    text = trainer.processing_class.decode(asked[1].completion_ids, skip_special_tokens=True)
    assert asked[0].peer == f"1. {text.strip()}"


def test_advantages_follow_the_policy_between_optimiser_steps(make, monkeypatch):
    trainer = make(
        StepOPSDGRPOTrainer, credit="appo_future", config={"num_iterations": 2, "max_steps": 2, "loss_type": "grpo"}
    )
    made, at_loss = [], []
    inner, get_loss = trainer._factors.advantages, trl.GRPOTrainer._compute_loss
    trainer._factors.advantages = lambda **given: made.append(inner(**given)) or made[-1]
    monkeypatch.setattr(
        trl.GRPOTrainer, "_compute_loss",
        lambda self, model, inputs: (get_loss(self, model, inputs), at_loss.append(inputs["advantages"]))[0],
    )  # fmt: skip
    trainer.train()
    made = made[1:]  # the batch comes first, then its two steps
    assert all(torch.equal(a, b.advantages) for a, b in zip(at_loss, made, strict=True))
    # At the first step the ratios are 1; at the second the policy has moved, and so have the advantages.
    assert made[0].metrics["appo/future_mean"] == 1.0
    assert not torch.equal(made[0].advantages, made[1].advantages)


def test_evaluation_is_trls_own(make):
    trainer = make(StepOPSDGRPOTrainer, credit_options=WHOLE)
    trainer.model.eval()
    batch = trainer._generate_and_score_completions([{"prompt": "look"}] * 4)
    assert batch["advantages"].dim() == 1


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        ("rrpo", "plans rollouts of its own"), ("appo", "plans rollouts of its own"), ("opsd", "whole distributions"),
        ("sdar", "adds a loss term"), ("stepopsd+rlsd", "one method with a teacher"), ("oar_g+appo_future", "again"),
        ("nothing", "must be one of"),
    ],
)  # fmt: skip
def test_methods_without_a_place_in_trl_are_refused_with_a_reason(make, credit, message):
    options = CreditConfig(name=credit, teacher="live") if credit == "stepopsd+rlsd" else None
    with pytest.raises(ValueError, match=message):
        make(StepOPSDGRPOTrainer, credit=credit, credit_options=options)


def test_extras_reach_the_method_and_missing_ones_are_named(make):
    def outcome(trainer, inputs, output):
        assert len(inputs) == len(output["completion_ids"])
        ids = output["completion_ids"]
        return {"outcome_by_gradient": torch.arange(ids.numel()).float().view_as(ids)}

    trained(make(StepOPSDGRPOTrainer, credit="oar_g", extras=outcome, config={"max_steps": 1}))
    with pytest.raises(ValueError, match=r"extras\['outcome_by_gradient'\] must be given: method oar_g"):
        make(StepOPSDGRPOTrainer, credit="oar_g", config={"max_steps": 1}).train()
    with pytest.raises(ValueError, match="gigpo needs turn_rewards and turn_states of every turn"):
        make(StepOPSDGRPOTrainer, credit="gigpo", config={"max_steps": 1}).train()
