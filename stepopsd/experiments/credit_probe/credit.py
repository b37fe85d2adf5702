"""What a method says about every token, in units of advantages, also where it says so by a loss term or later."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stepopsd.train.prepared import Prepared
from stepopsd.train.readout import Readout
from stepopsd.train.trainer import Trainer

Measured = Literal["advantages", "advantages and loss term", "advantages after one step"]


def token_credit(trainer: Trainer, prepared: Prepared) -> tuple[Tensor, Measured]:
    """(N, T) float64 credit of the batch, 0 outside responses, and what it was read from.

    A method that follows the policy says nothing of its own before the policy has moved: it gets its credit after one
    optimiser step on another batch. The trainer's policy moves with it, so this comes last.

    Args:
        trainer: Prepared the batch.
        prepared: Of update 1.
    """
    if prepared.result.moves:
        return _after_a_step(trainer, prepared).double(), "advantages after one step"
    advantages = prepared.batch.advantages.double()
    if prepared.result.auxiliaries:
        return advantages + implied_advantages(trainer, prepared), "advantages and loss term"
    return advantages, "advantages"


def implied_advantages(trainer: Trainer, prepared: Prepared) -> Tensor:
    """(N, T) float64: the advantage whose policy gradient is nearest to a loss term's gradient, token by token.

    The policy gradient pushes the logits z of a sampled token y along e_y - p by its advantage A. A loss term with the
    gradient g by z, at the same token weight, is compared along that direction: A = -<g, e_y - p>·T / |e_y - p|², T
    the temperature. Where the term is one of log p_y alone, as sdar's, nothing is lost by it; of a whole distribution,
    as opsd's, it is the part that concerns the sampled token.
    """
    batch, policy = prepared.batch, trainer.policy
    temperature = trainer.config.rollout.temperature
    out = torch.zeros(batch.input_ids.shape, dtype=torch.float64, device=policy.device)
    for rows in torch.arange(len(batch), device=policy.device).split(64):
        part, mask = batch.select(rows), batch.response_mask[rows]
        ids = part.input_ids[mask]
        with torch.no_grad():
            states = policy.read_targets(part.input_ids, part.attention_mask, mask)
            weight, bias = states.parameters
            logits = states.states if weight is None else torch.nn.functional.linear(states.states, weight, bias)
        logits = logits.double().requires_grad_()
        chances = (logits.detach() / temperature).softmax(-1)
        term = prepared.result.auxiliary(
            rows, mask, ids, Readout(logits), chances.gather(1, ids[:, None])[:, 0].log(),
            torch.ones(len(ids), dtype=torch.float64, device=policy.device), temperature, lambda *seen: None,
        )  # fmt: skip
        if term is None:
            continue
        (gradient,) = torch.autograd.grad(term, logits)
        push = torch.nn.functional.one_hot(ids, logits.shape[1]) - chances  # (M, V)
        size = push.square().sum(1)
        implied = -temperature * (gradient * push).sum(1) / size.clamp(min=torch.finfo(torch.float64).tiny)
        out[rows] = out[rows].masked_scatter(mask, implied)
    return out


def _after_a_step(trainer: Trainer, prepared: Prepared) -> Tensor:
    """Advantages of the batch once the policy has taken a step on the next update's."""
    following = trainer.prepare(2)
    trainer.step.run(following.batch, None, 2)
    batch, result = prepared.batch, prepared.result
    rows = torch.arange(len(batch), device=batch.input_ids.device)
    if result.branch is not None:
        branched = result.branch(rows, first=False)
        return result.again(rows, branched.logprobs, branched.rewards)
    current = trainer.policy.score(
        batch.input_ids, batch.attention_mask, batch.response_mask,
        temperature=trainer.config.rollout.temperature, max_tokens=trainer.config.optim.microbatch_tokens,
    )  # fmt: skip
    return result.again(rows, current)
