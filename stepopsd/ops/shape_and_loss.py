"""shape_and_loss(): shaped advantages and their policy loss from one score of the student's logits."""

from __future__ import annotations

from torch import Tensor

from stepopsd.ops import checks, gradients, losses, registry
from stepopsd.ops.policy_loss import PolicyLoss, check_targets, gradient_wanted, loss_mask, loss_of_scores
from stepopsd.ops.results import ShapedAdvantages
from stepopsd.ops.segments import StepSegments
from stepopsd.ops.shaping import shape_advantages, step_mask


def shape_and_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    token_ids: Tensor,
    advantages: Tensor,
    step_ids: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    teacher_logprobs: Tensor | None = None,
    trajectory_ids: Tensor | None = None,
    segments: StepSegments | None = None,
    alpha_clip: float = 0.2,
    lambda_mix: float = 0.2,
    weight_fn: str = "sigmoid",
    step_norm: str = "equal_step_mean_abs",
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
) -> tuple[ShapedAdvantages, PolicyLoss]:
    """Shape the advantages and compute their policy loss, the student's logits being scored once for both.

    For one on-policy update per batch: the old log-probs are those of this forward, so the ratio is 1 and no separate
    pass for them is needed. The same bits as ``shape_advantages`` followed by ``grpo_loss`` with its advantages.

    Args:
        student_logits: (..., V), as ``logits`` of ``grpo_loss``; the gradient flows to them alone.
        teacher_logits: (..., V), alike but for the strides; or None with ``teacher_logprobs``.
        teacher_logprobs: (...) float, where the teacher has been scored already.
        mask: (...) bool, the tokens of the loss; None takes all. Tokens of steps outside it are shaped all the same.

    The other arguments are those of ``shape_advantages`` and ``grpo_loss``.

    Returns:
        ``ShapedAdvantages`` without entropies, and ``PolicyLoss``.

    Raises:
        ValueError: Neither or both of ``teacher_logits`` and ``teacher_logprobs``; else as in the two functions.
        TypeError, IndexError, RuntimeError: As in the two functions.

    Example:
        >>> logits = torch.zeros(1, 2, 5, requires_grad=True)
        >>> ids = torch.tensor([[3, 1]])
        >>> shaped, policy = shape_and_loss(logits, torch.zeros(1, 2, 5), ids, torch.ones(1, 2))
        >>> shaped.weights.tolist(), policy.metrics.ratio_mean.item()
        ([[1.0, 1.0]], 1.0)

    Source: StepOPSD, arXiv 2605.27140; docs/losses.md.
    """
    if (teacher_logits is None) == (teacher_logprobs is None):
        given = "neither" if teacher_logits is None else "both"
        raise ValueError(f"give either teacher_logits or teacher_logprobs, got {given}")
    options = losses.loss_options(loss, clip_low, clip_high, dual_clip, kl_coef, entropy_coef)
    dtype = checks.logits("student_logits", student_logits)
    lead, device = student_logits.shape[:-1], student_logits.device
    checks.token_ids(token_ids, lead, device)
    temperature = checks.temperature(temperature, lead, device)
    mask = loss_mask(mask, lead, device)
    check_targets(advantages, None, ref_logprobs, token_weights, kl_coef, lead, device, dtype)
    weights = losses.loss_weights(loss, mask, aggregation, budget, token_weights, dtype)
    wanted = gradient_wanted(student_logits, temperature, inplace)
    steps = step_mask(step_ids, lead, device)

    if teacher_logits is not None:
        checks.logits_pair(student_logits, teacher_logits)
        teacher_logprobs = registry.score_rows([teacher_logits], token_ids, steps, temperature, False, backend)[0, 0]
    scored = _score(student_logits, token_ids, mask | steps, temperature, wanted, backend)
    shaped = shape_advantages(
        None, None, None, advantages, step_ids, trajectory_ids=trajectory_ids, segments=segments,
        student_logprobs=scored[0].where(steps, 0), teacher_logprobs=teacher_logprobs, alpha_clip=alpha_clip,
        lambda_mix=lambda_mix, weight_fn=weight_fn, step_norm=step_norm, backend=backend,
    )  # fmt: skip
    policy = loss_of_scores(
        student_logits, token_ids, mask, scored.where(mask, 0), shaped.advantages, None, ref_logprobs, weights, options,
        temperature, wanted, inplace, backend,
    )  # fmt: skip
    return shaped, policy


def _score(
    logits: Tensor, ids: Tensor, active: Tensor, temperature: float | Tensor, wanted: bool, backend: str
) -> Tensor:
    if wanted:
        return gradients.normalised_scores(logits, ids, active, temperature, True, backend)
    return registry.score_rows([logits], ids, active, temperature, True, backend)[0]
