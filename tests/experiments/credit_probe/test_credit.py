"""Loss terms and followers of the policy as token advantages."""

from __future__ import annotations

import pytest
import torch

from stepopsd.experiments.credit_probe.credit import implied_advantages, token_credit

SCORE = {"label": True, "peer": True, "placement": "prefix", "rows_without_peer": "score"}


def test_sdars_term_is_its_gate_exactly(prepared):
    trainer, update = prepared(name="sdar", sdar={"coefficient": 0.5, "beta": 3.0, "hindsight": SCORE})
    implied = implied_advantages(trainer, update)
    gap = update.result.tokens["delta"].double()
    (opinion,) = update.result.auxiliaries
    asked = opinion.scores.asked
    # Where a token is all but certain, both gradients vanish and rounding is what is left.
    certain = update.batch.old_logprobs > -1e-3
    doubtful = asked & ~certain
    assert doubtful.sum() > 30
    torch.testing.assert_close(implied[doubtful], 0.5 * torch.sigmoid(3.0 * gap[doubtful]), atol=1e-3, rtol=1e-3)
    assert not implied[~asked].any()
    seen, measured = token_credit(trainer, update)
    assert measured == "advantages and loss term"
    torch.testing.assert_close(seen, update.batch.advantages.double() + implied)


def test_opsds_term_is_its_gradient_along_the_sampled_token(prepared):
    """At β = 1 the gradient by the logits is p·(log p - log q - KL(p | q))."""
    trainer, update = prepared(name="opsd", opsd={"beta": 1.0, "hindsight": SCORE})
    implied = implied_advantages(trainer, update)
    (opinion,) = update.result.auxiliaries
    asked, batch = opinion.scores.asked, update.batch
    with torch.no_grad():
        student = distribution(trainer.policy.read_targets(batch.input_ids, batch.attention_mask, asked))
        teacher = distribution(opinion.part.teacher.read(opinion.scores, torch.arange(len(update.rows))))
    chances, ids = student.exp(), batch.input_ids[asked]
    gap = student - teacher
    gradient = chances * (gap - (chances * gap).sum(1, keepdim=True))
    push = torch.nn.functional.one_hot(ids, chances.shape[1]) - chances
    expected = -(gradient * push).sum(1) / push.square().sum(1)
    doubtful = batch.old_logprobs[asked] < -1e-3
    assert doubtful.sum() > 30
    assert expected[doubtful].std() > 0.1
    torch.testing.assert_close(implied[asked][doubtful], expected[doubtful], atol=1e-3, rtol=1e-2)
    assert torch.equal(token_credit(trainer, update)[0], implied), "no reward, no other advantage"


def distribution(readout):
    weight, _ = readout.parameters
    return (readout.states @ weight.T).double().log_softmax(-1)


def test_a_method_that_follows_the_policy_is_measured_after_it_moved(prepared):
    trainer, update = prepared(name="appo_future")
    before = [value.detach().clone() for value in trainer.policy.model.parameters()]
    plain = update.batch.advantages.double()
    live = plain != 0
    assert live.any()
    factors = (plain / update.plain[:, None])[live]
    assert factors.std() < 1e-5, "nothing to see before"
    seen, measured = token_credit(trainer, update)
    assert measured == "advantages after one step"
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.policy.model.parameters(), strict=True))
    assert (seen[live] / plain[live]).std() > 1e-3


@pytest.mark.parametrize("name", ["grpo", "stepopsd"])
def test_other_methods_are_their_advantages(prepared, name):
    trainer, update = prepared(name=name)
    seen, measured = token_credit(trainer, update)
    assert measured == "advantages"
    assert torch.equal(seen, update.batch.advantages.double())
