"""Every torch custom op of the package: schema, real implementation and fake, in one place.

Eager calls go straight to the implementation: dispatching a custom op costs tens of microseconds of host time. Checks
of values (id range) live in the implementations, so that ``torch.compile(fullgraph=True)`` keeps one graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from stepopsd.ops import dispatch, layout
from stepopsd.ops.results import STATISTICS
from stepopsd.ops.segments import StepSegments, sort_steps

_dispatch_modes = torch._C._len_torch_dispatch_stack
functorch_level = torch._C._functorch.peek_interpreter_stack

SCORE_CHANNELS = 3  # log-prob, log-sum-exp, entropy
NORMALISED_CHANNELS = 5  # and the normaliser's peak and log-mass
SHAPE_CHANNELS = 4  # shaped, weight, delta, scale


def traced(*tensors: Tensor) -> bool:
    """Whether something other than plain eager PyTorch looks on, so that the call must be an op with a schema."""
    if torch.compiler.is_compiling() or _dispatch_modes() > 0 or functorch_level() is not None:
        return True
    for x in tensors:  # a generator would cost more than what it looks at
        kind = type(x)
        if kind is not Tensor and kind is not Parameter:
            return True
    return False


def score_rows(
    logits: list[Tensor], ids: Tensor, active: Tensor, temperature: float | Tensor, entropy: bool, backend: str
) -> Tensor:
    """(K, 3, ...) rows from K = 1 or 2 logits (..., V), detached; ``backend`` is a name or "auto"."""
    if not traced(*logits, ids, active):
        return compute_scores(logits, ids, active, temperature, entropy, backend)
    number, per_row = (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)
    with torch.no_grad():
        scored: Tensor = _score_op(logits, ids, active, number, per_row, entropy, backend)
    return scored


def shape_rows(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    segments: StepSegments | None,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    step_norm: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(4, ...) rows and (17,) statistics from (...) log-probs, detached; ``backend`` is a name or "auto"."""
    tensors = (student_logprobs, teacher_logprobs, advantages, active)
    if not traced(*tensors):
        return _shape_rows(*tensors, segments, alpha_clip, lambda_mix, weight_fn, step_norm, backend)
    parts = [] if segments is None else segments.tensors
    with torch.no_grad():
        shaped: tuple[Tensor, Tensor] = _shape_op(
            *tensors, parts, alpha_clip, lambda_mix, weight_fn, step_norm, backend
        )
    return shaped


def step_segments(step_ids: Tensor, trajectory_ids: Tensor) -> StepSegments:
    """Segments of (M,) step and trajectory ids."""
    if traced(step_ids, trajectory_ids):
        return StepSegments(*_segments_op(step_ids, trajectory_ids))
    return _step_segments(step_ids, trajectory_ids)


def compute_scores(
    logits: list[Tensor],
    ids: Tensor,
    active: Tensor,
    temperature: float | Tensor,
    entropy: bool,
    backend: str,
    normaliser: bool = False,
) -> Tensor:
    first = logits[0]
    resolve = dispatch.resolve_gradients if normaliser else dispatch.resolve
    name = resolve(backend, first.device.type, first.dtype)
    rows = dispatch.load(name).score_rows
    channels = NORMALISED_CHANNELS if normaliser else SCORE_CHANNELS
    if name != "cpu" and first.device.type == "cpu":  # the native module looks itself
        layout.check_ids(ids, active, first.shape[-1])
    result = None
    for index, blocks in layout.row_blocks(*logits):
        live, wide = _rows_of(active, index), _rows_of(ids, index)
        wide = wide if wide.dtype == torch.int64 else wide.long()
        per_row = temperature if isinstance(temperature, float) else _rows_of(temperature, index)
        try:
            block = rows(blocks, wide, live, temperature=per_row, entropy=entropy, normaliser=normaliser)
        except IndexError:
            layout.check_ids(ids, active, first.shape[-1])  # names the place in the caller's shape
            raise
        if index == ():
            return block
        if result is None:
            result = block.new_empty((len(logits), channels, *ids.shape))
        result.movedim((0, 1), (-2, -1))[index].copy_(block.movedim((0, 1), (-2, -1)))
    return first.new_zeros((len(logits), channels, *ids.shape), dtype=_wide(first)) if result is None else result


def _rows_of(x: Tensor, index: layout.Index) -> Tensor:
    return (x[index] if index else x).contiguous()


def as_block(x: Tensor, index: layout.Index, shape: torch.Size) -> Tensor:
    """(B, R) contiguous values of the rows of a block (B, R, V); ``x`` (...) has one for each row of the whole."""
    if index:
        x = x[index]
    if x.shape != shape[:2]:
        x = x.reshape(shape[:2])
    return x if x.is_contiguous() else x.contiguous()


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("stepopsd::score_rows", mutates_args=())
def _score_op(
    logits: list[Tensor],
    ids: Tensor,
    active: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    entropy: bool,
    backend: str,
) -> Tensor:
    how = temperature if temperatures is None else temperatures
    return compute_scores(logits, ids, active, how, entropy, backend)


@_score_op.register_fake
def _(
    logits: list[Tensor],
    ids: Tensor,
    active: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    entropy: bool,
    backend: str,
) -> Tensor:
    return logits[0].new_empty((len(logits), SCORE_CHANNELS, *ids.shape), dtype=_wide(logits[0]))


def _shape_rows(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    segments: StepSegments | None,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    step_norm: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    name = dispatch.resolve(backend, active.device.type, student_logprobs.dtype)
    return dispatch.load(name).shape_rows(
        student_logprobs.contiguous(),
        teacher_logprobs.contiguous(),
        advantages.contiguous(),
        active.contiguous(),
        segments,
        alpha_clip=alpha_clip,
        lambda_mix=lambda_mix,
        weight_fn=weight_fn,
        step_norm=step_norm,
    )


@torch.library.custom_op("stepopsd::shape_rows", mutates_args=())
def _shape_op(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    segments: list[Tensor],
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    step_norm: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _shape_rows(
        student_logprobs,
        teacher_logprobs,
        advantages,
        active,
        StepSegments(*segments) if segments else None,
        alpha_clip,
        lambda_mix,
        weight_fn,
        step_norm,
        backend,
    )


@_shape_op.register_fake
def _(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    segments: list[Tensor],
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    step_norm: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    planes = student_logprobs.new_empty((SHAPE_CHANNELS, *active.shape))
    return planes, planes.new_empty((len(STATISTICS),), dtype=torch.float64)


def _step_segments(step_ids: Tensor, trajectory_ids: Tensor) -> StepSegments:
    if step_ids.device.type == "cpu" and dispatch.unavailable("cpu", "cpu") is None:
        from stepopsd.ops import native

        segments: StepSegments = native.step_segments(step_ids.long(), trajectory_ids.long())
        return segments
    return sort_steps(step_ids, trajectory_ids)


@torch.library.custom_op("stepopsd::step_segments", mutates_args=())
def _segments_op(step_ids: Tensor, trajectory_ids: Tensor) -> list[Tensor]:
    return _step_segments(step_ids, trajectory_ids).tensors


@_segments_op.register_fake
def _(step_ids: Tensor, trajectory_ids: Tensor) -> list[Tensor]:
    tokens = step_ids.numel()
    return [step_ids.new_empty((size,), dtype=torch.int64) for size in (tokens, tokens + 1, tokens + 1, 2)]
