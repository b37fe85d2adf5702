"""The ops from hidden states and an LM head: the logits of a batch never exist as a whole.

Hidden states of the tokens that count are multiplied with the head chunk by chunk into one reused buffer, which the row
kernels score, and turn into its own gradient, in place.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stepopsd.ops import checks, gradients, linear_ops
from stepopsd.ops.linear_inputs import check_head, choose_tokens, head_options
from stepopsd.ops.logprobs import TokenLogprobs
from stepopsd.ops.results import ShapedAdvantages
from stepopsd.ops.segments import StepSegments
from stepopsd.ops.shaping import shape_advantages, step_mask


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    fp32_logits: bool = False,
    chunk_rows: int | None = None,
    max_active: int | None = None,
    backend: str = "auto",
) -> TokenLogprobs:
    """``token_logprobs(hidden @ weight.T + bias, token_ids)`` without the logits, differentiable.

    Rows are taken ``chunk_rows`` at a time through one buffer of logits, masked tokens left out. The backward computes
    each chunk's logits again, turns them into their gradient in place, and adds up the gradient of the weight in
    float32. Gradients that nobody asks for cost nothing.

    Args:
        hidden: (..., H) bf16, fp16, fp32 or fp64; any leading shape and strides. Hidden states at position t must be
            those that predict ``token_ids`` at t.
        weight: (V, H) of the same dtype; with ``fp32_logits`` another one is allowed (a float32 head on bf16 states).
        token_ids: (...) int64 or int32 in [0, V).
        bias: (V,) of the weight's dtype.
        mask: (...) bool, the tokens to score; None scores all. Hidden states and ids of the others are not read.
        temperature: Logits are divided by it first; a number > 0, or (...) float32 with one value per token.
        entropy: Also compute the entropy.
        fp32_logits: Logits in float32 instead of the weight's dtype.
        chunk_rows: Rows of one chunk; None takes as many as fit into 512 MiB of logits on a GPU, 32 MiB elsewhere
            (up to 128 MiB for 128 rows).
        max_active: Upper bound on the number of tokens in ``mask``, where the caller knows one: nothing then waits for
            the GPU (without it, one transfer per call does), and so many rows are computed.
        backend: Of the row kernels, as for ``token_logprobs``.

    Returns:
        ``TokenLogprobs`` (...), with a gradient towards hidden, weight and bias.

    Raises:
        ValueError: A shape, device or option out of what is allowed; a named backend that is not available; on CPU a
            mask with more than ``max_active`` tokens (on a GPU those beyond it become NaN).
        TypeError: A dtype that is not allowed, or dtypes that differ.
        IndexError: An id outside [0, V) where not masked, on CPU.
        RuntimeError: A second derivative; a call inside ``torch.func`` transforms.

    Under autocast, hidden states, weight and bias are converted to its dtype as by ``torch.nn.functional.linear``.
    Masked and invalid rows are as in ``token_logprobs``.

    Example:
        >>> head = torch.zeros(4, 8)
        >>> linear_token_logprobs(torch.randn(1, 8), head, torch.tensor([2])).logprobs.exp()
        tensor([0.2500])
    """
    lead, device = check_head("", hidden, weight, bias, fp32_logits), hidden.device
    checks.token_ids(token_ids, lead, device)
    temperature = checks.temperature(temperature, lead, device)
    gradients.refuse_transforms("linear_token_logprobs", hidden)
    if mask is not None:
        checks.mask(mask, lead, device)
    options = head_options(hidden, weight, fp32_logits, chunk_rows, backend)
    tokens = choose_tokens(token_ids, mask, max_active)
    logprobs, lse, spread, *_ = linear_ops.score(hidden, weight, bias, tokens, temperature, entropy, options)
    return TokenLogprobs(logprobs, lse, spread if entropy else None)


@torch.no_grad()
def linear_shape_advantages(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    step_ids: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    trajectory_ids: Tensor | None = None,
    segments: StepSegments | None = None,
    alpha_clip: float = 0.2,
    lambda_mix: float = 0.2,
    weight_fn: str = "sigmoid",
    step_norm: str = "equal_step_mean_abs",
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    fp32_logits: bool = False,
    chunk_rows: int | None = None,
    max_active: int | None = None,
    backend: str = "auto",
) -> ShapedAdvantages:
    """``shape_advantages`` from the hidden states and heads of both models; no logits of the batch exist.

    The teacher is scored first, then the student, each through a buffer of one chunk of logits; only numbers per token
    are kept. Tokens in no step are left out of the products.

    Args:
        student_hidden, teacher_hidden: (..., H) of one leading shape; H, dtype and strides may differ.
        student_weight, teacher_weight: (V, H) each; V may differ too (padded vocabularies), if every id lies in both.
        token_ids, advantages, step_ids: (...) as in ``shape_advantages``.
        student_bias, teacher_bias: (V,) or None.
        trajectory_ids, segments, alpha_clip, lambda_mix, weight_fn, step_norm, temperature, entropy: As there.
        fp32_logits, chunk_rows, max_active: As in ``linear_token_logprobs``; ``max_active`` bounds the tokens in steps.
        backend: As for ``shape_advantages``.

    Returns:
        ``ShapedAdvantages``, detached; float64 where one of the models is.

    Raises:
        ValueError, TypeError, IndexError: As ``shape_advantages`` and ``linear_token_logprobs``.

    Example:
        >>> hidden, head = torch.randn(3, 8), torch.randn(11, 8)
        >>> ids, adv = torch.randint(11, (3,)), torch.ones(3)
        >>> linear_shape_advantages(hidden, head, hidden, head, ids, adv).weights.tolist()
        [1.0, 1.0, 1.0]
    """
    checks.options(alpha_clip, lambda_mix, weight_fn, step_norm)
    lead, device = check_head("student_", student_hidden, student_weight, student_bias, fp32_logits), token_ids.device
    if check_head("teacher_", teacher_hidden, teacher_weight, teacher_bias, fp32_logits) != lead:
        raise ValueError(
            f"teacher_hidden must have the leading shape of student_hidden {tuple(lead)}, "
            f"got {tuple(teacher_hidden.shape[:-1])}"
        )
    for name, x in (("teacher_hidden", teacher_hidden), ("token_ids", token_ids)):
        checks.same_device(name, x, student_hidden.device)
    checks.token_ids(token_ids, lead, device)
    temperature = checks.temperature(temperature, lead, device)
    mask = None if step_ids is None else step_mask(step_ids, lead, device)
    tokens = choose_tokens(token_ids, mask, max_active)
    scored = []
    for hidden, weight, bias in (
        (teacher_hidden, teacher_weight, teacher_bias),
        (student_hidden, student_weight, student_bias),
    ):
        options = head_options(hidden, weight, fp32_logits, chunk_rows, backend)
        scored.append(linear_ops.score(hidden, weight, bias, tokens, temperature, entropy, options))
    teacher, student = scored
    shaped = shape_advantages(
        None, None, None, advantages, step_ids, trajectory_ids=trajectory_ids, segments=segments,
        student_logprobs=student[0], teacher_logprobs=teacher[0], alpha_clip=alpha_clip, lambda_mix=lambda_mix,
        weight_fn=weight_fn, step_norm=step_norm, backend=backend,
    )  # fmt: skip
    return replace(shaped, entropies=(student[2], teacher[2])) if entropy else shaped
