"""One policy step against the losses on whole logits, and which rows are forwarded at all."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from stepopsd.ops.losses import aggregation_weights
from stepopsd.ops.policy_loss import grpo_loss
from stepopsd.rollout.records import Batch
from stepopsd.train.config import OptimConfig, RunConfig
from stepopsd.train.config_io import from_tree
from stepopsd.train.policy import Policy
from stepopsd.train.step import PolicyStep
from tests.train.conftest import make_policy
from tests.train.test_trainer import config, log, train

LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce")


def make_batch(policy: Policy) -> Batch:
    g = torch.Generator().manual_seed(0)
    n, t = 6, 12
    lengths = torch.tensor([12, 9, 12, 5, 11, 7])
    attention = torch.arange(t) < lengths[:, None]
    mask = attention & (torch.rand(n, t, generator=g) < 0.6)
    mask[:, 0] = False
    ids = torch.randint(1, 20, (n, t), generator=g) * attention
    old = policy.score(ids, attention, mask, temperature=1.0, max_tokens=10_000)
    advantages = torch.randn(n, t, generator=g) * mask
    return Batch(
        input_ids=ids, attention_mask=attention, response_mask=mask, step_ids=torch.full((n, t), -1),
        old_logprobs=old + torch.randn(n, t, generator=g) * mask, trajectory_ids=torch.arange(n),
        group_ids=torch.arange(n) // 2, rewards=torch.zeros(n), success=torch.zeros(n, dtype=torch.bool),
        advantages=advantages,
    )  # fmt: skip


def step_of(policy: Policy, **sections) -> PolicyStep:
    tree = {"loss": {"kl_coef": 0.0}, "optim": {"lr": 1.0, "max_grad_norm": 1e9}, "rollout": {"max_response_tokens": 9}}
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    return PolicyStep(policy, optimizer, Accelerator(cpu=True), from_tree(RunConfig, tree))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("microbatch_tokens", [13, 10_000])
def test_a_step_follows_the_gradient_of_the_loss_on_whole_logits(name, microbatch_tokens):
    policy, twin = make_policy(), make_policy()
    batch = make_batch(policy)
    step = step_of(policy, loss={"name": name}, optim={"microbatch_tokens": microbatch_tokens})
    step.run(batch, None, 1)

    logits = twin.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    mask = batch.response_mask[:, 1:]
    reduction = {"gspo": "sequence_mean", "dr_grpo": "dr_grpo"}.get(name, "token_mean")
    dual = 3.0 if name in ("grpo", "dr_grpo", "dapo") else 0.0
    value = grpo_loss(
        logits, batch.input_ids[:, 1:], batch.advantages[:, 1:], batch.old_logprobs[:, 1:], mask, loss=name,
        dual_clip=dual, token_weights=aggregation_weights(mask, reduction, budget=9 if name == "dr_grpo" else 0),
    )  # fmt: skip
    assert float(value.metrics.clip_low + value.metrics.clip_high) > 0 or name == "reinforce"
    value.loss.backward()
    for new, old in zip(policy.model.parameters(), twin.model.parameters(), strict=True):
        assert old.grad is not None
        torch.testing.assert_close(new.detach(), old.detach() - old.grad, atol=2e-6, rtol=1e-4)


def forwarded(monkeypatch) -> list[int]:
    """Rows of every forward of any policy from here on, sampling left out."""
    rows: list[int] = []
    read = Policy.read_at

    def counting(self, input_ids, *args, **kwargs):
        rows.append(len(input_ids))
        return read(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(Policy, "read_at", counting)
    return rows


@pytest.mark.parametrize("name", ["grpo", "stepopsd"])
def test_rows_without_gradient_are_never_forwarded(model, tmp_path, monkeypatch, name):
    rows = forwarded(monkeypatch)
    run = config(tmp_path / "a", model, credit={"name": name, "teacher": "live"}, optim={"updates": 1})
    record = log(train(run))[0]
    live = round(record["mixed_groups"] * 4) * 4  # every member of a mixed group has an advantage
    assert 0 < live < 16
    passes = 3 if name == "stepopsd" else 2  # old log-probs, the teacher's, the step
    assert sum(rows) == passes * live


def test_dropped_groups_are_not_forwarded_even_for_the_kl_term(model, tmp_path, monkeypatch):
    kept, rows = [], forwarded(monkeypatch)
    for mode in ("off", "drop"):
        rows.clear()
        run = config(tmp_path / mode, model, credit={"dynamic_sampling": mode}, loss={"kl_coef": 0.1},
                     optim={"updates": 1}, transcripts_every=1)  # fmt: skip
        record = log(train(run))[0]
        kept.append(record["kept_groups"])
        assert sum(rows) == 3 * round(record["kept_groups"] * 16)  # old log-probs, reference, step
    assert kept == [1.0, record["mixed_groups"]]


@pytest.mark.parametrize(("size", "sizes"), [(4, [3, 3]), (5, [6]), (8, [6]), (1, [1] * 6)])
def test_minibatches_by_rows_are_even_and_lose_nobody(size, sizes):
    policy = make_policy()
    found = list(step_of(policy, optim={"minibatch_rows": size})._minibatches(make_batch(policy)))
    assert [len(rows) for rows in found] == sizes
    assert sorted(torch.cat(found).tolist()) == list(range(6))


def test_minibatches_go_by_rows_or_by_groups():
    with pytest.raises(ValueError, match=r"optim\.minibatch_rows must be 0 where optim\.minibatch_groups is 2, got 8"):
        OptimConfig(minibatch_groups=2, minibatch_rows=8)


def test_an_update_whose_groups_are_all_dropped_changes_nothing(model, tmp_path):
    run = config(tmp_path / "a", model, env={"max_steps": 1}, credit={"dynamic_sampling": "drop"}, transcripts_every=1)
    trainer = train(run)
    assert [r["kept_groups"] for r in log(trainer)] == [0.0] * 3
    assert [r["grad_norm"] for r in log(trainer)] == [0.0] * 3
    for new, old in zip(trainer.policy.model.parameters(), make_policy().model.parameters(), strict=True):
        assert torch.equal(new, old)


def test_distillation_forwards_only_rows_whose_teacher_knows_more(model, tmp_path, monkeypatch):
    rows = forwarded(monkeypatch)
    record = log(train(config(tmp_path / "a", model, credit={"name": "opsd"}, optim={"updates": 1})))[0]
    assert 0 < record["teacher/with_peer"] < 16
    # The student's and the teacher's pass: without advantages nobody reads old log-probs.
    assert sum(rows) == 2 * record["teacher/with_peer"]
    assert record["opsd/divergence"] > 0
    assert record["grad_norm"] > 0
