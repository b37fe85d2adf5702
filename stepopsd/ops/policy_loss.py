"""grpo_loss(): policy loss of a batch of logits with metrics, its gradient by the logits being made in the forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepopsd.ops import checks, dispatch, gradient_ops, gradients, losses, registry
from stepopsd.ops.losses import AGGREGATIONS, LOSS_METRICS, LOSSES, LossOptions, Targets, aggregation_weights
from stepopsd.ops.reference_loss import TokenLoss, clipped_surrogate, k3_divergence

__all__ = [
    "AGGREGATIONS", "LOSSES", "LossMetrics", "PolicyLoss", "TokenLoss", "aggregation_weights", "clipped_surrogate",
    "grpo_loss", "k3_divergence", "loss_of_scores",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """What to watch in a call of ``grpo_loss``, as 0-d float64 tensors on the input's device; nothing waits for it.

    Means are over the tokens of the mask whose terms are finite; they are 0 where there is none.

    Attributes:
        packed: (12,) float64, all of them in the order of ``LOSS_METRICS``:
            ``tokens``: tokens counted. ``nonfinite``: tokens of the mask left out.
            ``ratio_mean``, ``ratio_min``, ``ratio_max``: of π/π_old (``gspo``: of its sequence ratio).
            ``clip_low``, ``clip_high``, ``clip_dual``: share of tokens that each clip took hold of.
            ``kl_ref``: exp(d) - d - 1 with d = ref - current. ``kl_old``: the same with d = current - old, an estimate
            of KL(π_old | π). ``entropy_mean``: in nats. ``old_gap_max``: largest |log π - log π_old|.

    Each is an attribute of its own: ``metrics.kl_ref``.
    """

    packed: Tensor

    def __getattr__(self, name: str) -> Tensor:
        if name not in LOSS_METRICS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.packed[LOSS_METRICS.index(name)]

    def as_dict(self) -> dict[str, float]:
        """Plain numbers by name, in one transfer from the device."""
        return dict(zip(LOSS_METRICS, self.packed.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Result of ``grpo_loss``; float32 (float64 for float64 logits).

    Attributes:
        loss: 0-d; the only one that carries a gradient.
        logprobs: (...) log-probs of the ids, 0 outside the mask.
        entropy: (...) entropies in nats, 0 outside the mask.
        metrics: Ratio, clip shares, divergences, entropy.
    """

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    metrics: LossMetrics


def grpo_loss(
    logits: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    old_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    loss: str = "grpo",
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float = 0.0,
    aggregation: str | None = None,
    budget: int = 0,
    token_weights: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    inplace: bool = False,
    backend: str = "auto",
) -> PolicyLoss:
    """Policy loss Σ weights·(surrogate + kl_coef·KL - entropy_coef·entropy), with its gradient made in the forward.

    The rows of logits are read to score the tokens, and once more to write the gradient. The backward multiplies that
    by the upstream gradient on the device and hands it out; with ``retain_graph`` it hands out a copy.

    Args:
        logits: (..., V) bf16, fp16, fp32 or fp64; any leading shape and row stride, V contiguous. (N, T, V), one
            sequence a row, for ``gspo`` and for every aggregation but ``token_mean``.
        token_ids: (...) int64 or int32 in [0, V).
        advantages: (...) float32 (or float64 beside float64 logits), one per token.
        old_logprobs: (...) float, of the policy that took the samples. None: that is this policy, the ratio is 1.
        mask: (...) bool, the tokens of the loss; None takes all. Nothing is read of the others in any tensor.
        ref_logprobs: (...) float, of the reference policy; needed where ``kl_coef`` > 0, else only measured against.
        kl_coef: Weight of the k3 estimate exp(d) - d - 1, d = ref - current.
        entropy_coef: Weight of the entropy bonus.
        loss: ``grpo``, ``dr_grpo``, ``dapo``, ``bnpo``: max(-A·r, -A·clip(r)) with the token ratio r, differing in what
            is left open below. ``gspo``: the same with the sequence ratio. ``cispo``: -A·clip(r)·log π with a
            constant clip(r). ``reinforce``: -A·log π.
        clip_low, clip_high: The ratio's range is [1 - clip_low, 1 + clip_high]. None takes the loss's own: 0.2, 0.2;
            ``dapo`` 0.2, 0.28; ``gspo`` 3e-4, 4e-4; ``cispo`` 1, 4.
        dual_clip: c > 1 bounds the surrogate of a negative advantage by -c·A; 0 turns it off.
        aggregation: Weights of the tokens, see ``aggregation_weights``. None takes the loss's own: ``grpo`` and
            ``gspo`` ``sequence_mean``, ``dr_grpo`` ``dr_grpo``, the others ``token_mean``.
        budget: Tokens of a full response, for ``dr_grpo``.
        token_weights: (...) float, weights instead of an aggregation: where the call sees a part of a mini-batch.
        temperature: Logits are divided by it first; a number > 0, or (...) float32 with one value per token.
        inplace: The gradient overwrites the logits. They must not be a leaf, and nothing else may need their values;
            they are left alone where no gradient is needed. ``torch.compile`` manages memory itself and ignores it.
        backend: As for ``shape_advantages``.

    Returns:
        ``PolicyLoss``. The gradient flows to the logits alone; the other tensors are constants, whether they require
        a gradient or not.

    Raises:
        ValueError: A shape, device, stride or option out of what is allowed; a missing budget or reference; a named
            backend that is not available; ``inplace`` on a leaf, a view of one, or logits that overlap in memory.
        TypeError: A dtype that is not allowed.
        IndexError: An id outside [0, V) in the mask, on CPU.
        RuntimeError: In the backward, where the logits that hold the gradient were changed in place before it; a second
            derivative; a call inside ``torch.func`` transforms.

    A token whose row of logits is invalid (see ``token_logprobs``), or whose advantage or log-prob is NaN, makes the
    loss NaN, and the gradient in its row alone (``gspo``: in its sequence). Outside the mask the gradient is exactly 0.
    fp16 gradients are rounded before the upstream gradient is applied: a loss scale does not save what underflows.

    Example:
        >>> logits = torch.zeros(1, 1, 2, requires_grad=True)
        >>> grpo_loss(logits, torch.tensor([[0]]), torch.ones(1, 1)).loss.backward()
        >>> logits.grad
        tensor([[[-0.5000,  0.5000]]])

    Source: docs/losses.md names the paper and the equation of each loss.
    """
    options = losses.loss_options(loss, clip_low, clip_high, dual_clip, kl_coef, entropy_coef)
    dtype = checks.logits("logits", logits)
    lead, device = logits.shape[:-1], logits.device
    checks.token_ids(token_ids, lead, device)
    temperature = checks.temperature(temperature, lead, device)
    mask = loss_mask(mask, lead, device)
    check_targets(advantages, old_logprobs, ref_logprobs, token_weights, kl_coef, lead, device, dtype)
    weights = losses.loss_weights(loss, mask, aggregation, budget, token_weights, dtype)
    wanted = gradient_wanted(logits, temperature, inplace)
    if wanted and loss != "gspo" and dispatch.fuses_losses(backend, device.type, logits.dtype):
        return _loss_of_rows(
            logits, token_ids, mask, advantages, old_logprobs, ref_logprobs, weights, options, temperature, inplace,
            backend,
        )  # fmt: skip
    if wanted:
        scored = gradients.normalised_scores(logits, token_ids, mask, temperature, True, backend)
    else:
        scored = registry.score_rows([logits], token_ids, mask, temperature, True, backend)[0]
    return loss_of_scores(
        logits, token_ids, mask, scored, advantages, old_logprobs, ref_logprobs, weights, options, temperature,
        wanted, inplace, backend,
    )  # fmt: skip


def loss_mask(mask: Tensor | None, lead: torch.Size, device: torch.device) -> Tensor:
    """``mask``, or one of all tokens; raise unless it is (...) bool."""
    if mask is None:
        return torch.ones(lead, dtype=torch.bool, device=device)
    checks.mask(mask, lead, device)
    return mask


def check_targets(
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    token_weights: Tensor | None,
    kl_coef: float,
    lead: torch.Size,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Raise unless the loss has what it needs, one value per token each."""
    checks.advantages(advantages, lead, device, dtype)
    others = {"old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, "token_weights": token_weights}
    for name, values in others.items():
        if values is not None:
            checks.floats(name, values)
            checks.rows(name, values, lead, device)
    if kl_coef > 0 and ref_logprobs is None:
        raise ValueError(f"ref_logprobs must be given with kl_coef {kl_coef}, got None")


def gradient_wanted(logits: Tensor, temperature: float | Tensor, inplace: bool) -> bool:
    """Whether the gradient must be made; raise where it cannot be, or not in place."""
    gradients.refuse_transforms("a policy loss", logits)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return False
    checks.constant("temperature", temperature)
    if inplace and not registry.traced(logits):
        gradients.check_overwritable("inplace", logits)
    return True


def loss_of_scores(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    scored: Tensor,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    weights: Tensor,
    options: LossOptions,
    temperature: float | Tensor,
    wanted: bool,
    inplace: bool,
    backend: str,
) -> PolicyLoss:
    """The loss from rows that are scored already: (3, ...), or (5, ...) where the gradient is wanted."""
    logprobs, entropy = scored[0], scored[2]
    targets = _targets(old_logprobs, ref_logprobs, advantages, weights, logprobs.dtype)
    terms = losses.policy_terms(logprobs, entropy, *targets, mask, options)

    def compute() -> tuple[Tensor, Tensor]:
        abc = gradient_ops.coefficients(terms.logprob_slope, None, terms.entropy_slope, entropy)
        return terms.loss, gradients.gradient_rows(
            logits, token_ids, mask, scored[registry.SCORE_CHANNELS :], abc, temperature, backend, inplace=inplace
        )

    value = gradients.with_gradient(logits, compute, backend) if wanted else terms.loss
    return PolicyLoss(value, logprobs, entropy, LossMetrics(terms.metrics))


def _loss_of_rows(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    weights: Tensor,
    options: LossOptions,
    temperature: float | Tensor,
    inplace: bool,
    backend: str,
) -> PolicyLoss:
    """A token-level loss with its gradient, each row being scored and differentiated in one go."""
    targets = _targets(old_logprobs, ref_logprobs, advantages, weights, torch.float32)
    found = []

    def compute() -> tuple[Tensor, Tensor]:
        scored, gradient = gradients.loss_rows(
            logits, token_ids, mask, targets, options, temperature, backend, inplace=inplace
        )
        terms = losses.policy_terms(scored[0], scored[2], *targets, mask, options)
        found.append((scored[0], scored[2], LossMetrics(terms.metrics)))
        return terms.loss, gradient

    value = gradients.with_gradient(logits, compute, backend)
    return PolicyLoss(value, *found[0])


def _targets(
    old_logprobs: Tensor | None, ref_logprobs: Tensor | None, advantages: Tensor, weights: Tensor, dtype: torch.dtype
) -> Targets:
    return Targets(old_logprobs, ref_logprobs, advantages, weights).map(lambda x: x.detach().to(dtype))
