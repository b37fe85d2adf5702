"""shape_advantages(): from two logits tensors (or two log-prob tensors) to shaped advantages in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from stepopsd.ops import checks, registry
from stepopsd.ops.results import ShapedAdvantages, ShapingStats
from stepopsd.ops.segments import StepSegments

__all__ = ["ShapedAdvantages", "ShapingStats", "shape_advantages", "step_segments"]


def step_segments(step_ids: Tensor, trajectory_ids: Tensor) -> StepSegments:
    """Sort tokens by trajectory and step once, for all calls of ``shape_advantages`` on the same batch.

    Args:
        step_ids: (...) int64 or int32; negative means in no step.
        trajectory_ids: (...) int, or (N,) one per leading row.

    Returns:
        ``StepSegments`` of the flattened tokens; built without waiting for the device.

    Raises:
        ValueError: Shapes or devices that do not fit.
        TypeError: Ids that are not int64 or int32.

    Example:
        >>> segments = step_segments(torch.tensor([[0, 0, 1]]), torch.tensor([7]))
        >>> segments.counts.tolist()
        [2, 1]
    """
    checks.integers("step_ids", step_ids)
    checks.trajectories(trajectory_ids, step_ids.shape, step_ids.device)
    if trajectory_ids.shape != step_ids.shape:
        trajectory_ids = trajectory_ids.view(-1, *[1] * (step_ids.ndim - 1)).expand(step_ids.shape)
    return registry.step_segments(step_ids.reshape(-1), trajectory_ids.reshape(-1))


def shape_advantages(
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    token_ids: Tensor | None,
    advantages: Tensor,
    step_ids: Tensor | None = None,
    *,
    trajectory_ids: Tensor | None = None,
    segments: StepSegments | None = None,
    student_logprobs: Tensor | None = None,
    teacher_logprobs: Tensor | None = None,
    alpha_clip: float = 0.2,
    lambda_mix: float = 0.2,
    weight_fn: str = "sigmoid",
    step_norm: str = "equal_step_mean_abs",
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    backend: str = "auto",
) -> ShapedAdvantages:
    """Reweight token advantages by how much more the teacher likes each sampled token than the student does.

    At tokens of steps: Δ = log p_T - log p_S; w = clip(2σ(sign(A)·Δ), 1-α, 1+α); Ã = A·(1 + λ(w-1)). Then, per
    trajectory with at least two live steps, Ã ← c_k·Ã in step k with m_k = mean|Ã| over the step and
    c_k = clamp(mean_k m_k / (m_k + 1e-6), 1/2, 2).

    Args:
        student_logits, teacher_logits: (..., V) bf16, fp16, fp32 or fp64, of one shape and dtype; any leading shape
            and row stride, V contiguous. Logits at position t must be those that predict ``token_ids`` at t.
        token_ids: (...) int64 or int32 in [0, V).
        advantages: (...) float32 (float64 is allowed beside float64 logits).
        step_ids: (...) int; a step is a (trajectory, step id) pair and may be spread over rows. Negative: in no step.
            None: every token counts as one of a step, and there is no step budget.
        trajectory_ids: (...) int, or (N,) one per leading row. Needed for the step budget.
        segments: ``step_segments(step_ids, trajectory_ids)`` where it is at hand already: saves the sort, and
            ``trajectory_ids`` are not needed then.
        student_logprobs, teacher_logprobs: (...) float, ready log-probs of the tokens, instead of the logits and ids
            (pass None for those three). They come back as they are.
        alpha_clip: α in (0, 1], half-width of the weight's range.
        lambda_mix: λ in [0, 1]. 0 returns the advantages bit for bit; the statistics are still computed.
        weight_fn: ``sigmoid`` for 2σ(sign(A)·Δ) or ``exp`` for exp(sign(A)·Δ).
        step_norm: ``equal_step_mean_abs``; ``equal_step_ratio`` takes m_k of |Ã/A| (1 where A is 0), so that rows
            whose advantages differ by a penalty keep their difference; ``none``. Skipped at λ = 0.
        temperature: Logits are divided by it first; a number > 0, or (...) float32 with one value per token.
        entropy: Also return the entropies of both rows, in nats.
        backend: ``auto`` (Triton on CUDA, native on CPU, else torch), ``triton``, ``cuda``, ``cpu`` or ``torch``.

    Returns:
        ``ShapedAdvantages``; float32 (float64 for float64 logits), detached.

    Raises:
        ValueError: A shape, device, stride or option out of what is allowed; step ids without trajectory ids where
            the budget needs them; a named backend that is not available, with the reason.
        TypeError: A dtype that is not allowed.
        IndexError: An id outside [0, V) in a step, on CPU.

    Tokens outside steps: logits, ids and log-probs are not read; A is kept bit for bit, w = 1, Δ = 0, log-probs and
    entropies 0. A = 0 stays 0 and the sign never changes. A row with a NaN or +inf logit, a row of -inf only, an id
    outside [0, V) on a GPU, and a token that is impossible (-inf) for both models give NaN in that row alone; the
    step means leave such tokens out. A token impossible for one model gives Δ = ±inf and a weight at the edge.

    Example:
        >>> logits = torch.randn(2, 3, 11)
        >>> ids, adv = torch.randint(11, (2, 3)), torch.ones(2, 3)
        >>> shape_advantages(logits, logits, ids, adv).weights.unique().tolist()
        [1.0]

    Source: StepOPSD, arXiv 2605.27140; ``exp`` is RLSD's weight, arXiv 2604.03128.
    """
    checks.options(alpha_clip, lambda_mix, weight_fn, step_norm)
    student, teacher, ids = checks.forms(
        student_logits, teacher_logits, token_ids, student_logprobs, teacher_logprobs
    )
    dtype = checks.logprobs(student, teacher) if ids is None else checks.logits_pair(student, teacher)
    lead, device = student.shape if ids is None else student.shape[:-1], student.device
    checks.advantages(advantages, lead, device, dtype)
    active = step_mask(step_ids, lead, device)
    if trajectory_ids is not None:
        checks.trajectories(trajectory_ids, lead, device)
    budget = step_norm != "none" and lambda_mix > 0
    if segments is not None:
        checks.segments(segments, lead, device, step_ids)
    elif budget and step_ids is not None:
        segments = _segments(step_ids, trajectory_ids, step_norm)

    entropies = None
    if ids is None:
        checks.logprob_options(temperature, entropy)
        s_logp, t_logp = constant(student, dtype), constant(teacher, dtype)
    else:
        checks.token_ids(ids, lead, device)
        temperature = checks.temperature(temperature, lead, device)
        scored = registry.score_rows([student, teacher], ids, active, temperature, entropy, backend)
        s_logp, t_logp = scored[0, 0], scored[1, 0]
        entropies = (scored[0, 2], scored[1, 2]) if entropy else None
    planes, packed = registry.shape_rows(
        s_logp, t_logp, constant(advantages, dtype), active, segments if budget else None, alpha_clip, lambda_mix,
        weight_fn, step_norm, backend,
    )  # fmt: skip
    return ShapedAdvantages(planes, s_logp, t_logp, entropies, ShapingStats(packed))


def constant(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` without its history, in ``dtype``."""
    if x.requires_grad:
        x = x.detach()
    return x if x.dtype == dtype else x.to(dtype)


def step_mask(step_ids: Tensor | None, lead: torch.Size, device: torch.device) -> Tensor:
    """(...) bool, the tokens of steps; all of them without step ids."""
    if step_ids is None:
        return torch.ones(lead, dtype=torch.bool, device=device)
    checks.integers("step_ids", step_ids)
    checks.rows("step_ids", step_ids, lead, device)
    return step_ids >= 0


def _segments(step_ids: Tensor, trajectory_ids: Tensor | None, step_norm: str) -> StepSegments:
    if trajectory_ids is None:
        raise ValueError(
            f"trajectory_ids must be given with step_ids when step_norm is {step_norm!r} (they say which rows form a "
            "trajectory), got None; pass them or step_norm='none'"
        )
    return step_segments(step_ids, trajectory_ids)
