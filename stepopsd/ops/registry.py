"""Every torch custom op of the package: schema, real implementation and fake, in one place.

Checks of values (id range) live in the bodies, so that ``torch.compile(fullgraph=True)`` keeps one graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stepopsd.ops import dispatch, layout, steps

PAIR_CHANNELS = 7  # shaped, weight, delta, log-prob student and teacher, entropy student and teacher
EPILOGUE_CHANNELS = 3  # shaped, weight, delta


@torch.library.custom_op("stepopsd::pair_rows", mutates_args=())
def pair_rows(
    student: Tensor,
    teacher: Tensor,
    ids: Tensor,
    advantages: Tensor,
    active: Tensor,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    temperature: float,
    entropy: bool,
    backend: str,
) -> Tensor:
    """(7, ...) packed rows from (..., V) logits; ``backend`` is a name or "auto"."""
    if ids.device.type == "cpu":
        layout.check_ids(ids, active, student.shape[-1])
    packed = student.new_zeros((PAIR_CHANNELS, *ids.shape), dtype=advantages.dtype)
    if ids.numel() == 0:
        return packed
    rows = dispatch.load(dispatch.resolve(backend, student.device.type, student.dtype)).pair_rows
    for index, (s, t) in layout.row_blocks(student, teacher):
        flat = (x[index].reshape(s.shape[:2]).contiguous() for x in (ids.long(), advantages, active))
        block = rows(
            s,
            t,
            *flat,
            alpha_clip=alpha_clip,
            lambda_mix=lambda_mix,
            weight_fn=weight_fn,
            temperature=temperature,
            entropy=entropy,
        )
        if index == ():
            return block.reshape(packed.shape)
        packed.movedim(0, -1)[index] = block.reshape(PAIR_CHANNELS, *packed.shape[1 + len(index) :]).movedim(0, -1)
    return packed


@pair_rows.register_fake
def _(
    student: Tensor,
    teacher: Tensor,
    ids: Tensor,
    advantages: Tensor,
    active: Tensor,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    temperature: float,
    entropy: bool,
    backend: str,
) -> Tensor:
    return student.new_empty((PAIR_CHANNELS, *ids.shape), dtype=advantages.dtype)


@torch.library.custom_op("stepopsd::epilogue_rows", mutates_args=())
def epilogue_rows(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    backend: str,
) -> Tensor:
    """(3, ...) packed rows from (...) log-probs; ``backend`` is a name or "auto"."""
    if active.numel() == 0:
        return student_logprobs.new_zeros((EPILOGUE_CHANNELS, *active.shape))
    rows = dispatch.load(dispatch.resolve(backend, active.device.type, student_logprobs.dtype)).epilogue_rows
    flat = (x.reshape(-1).contiguous() for x in (student_logprobs, teacher_logprobs, advantages, active))
    packed = rows(*flat, alpha_clip=alpha_clip, lambda_mix=lambda_mix, weight_fn=weight_fn)
    return packed.reshape(EPILOGUE_CHANNELS, *active.shape)


@epilogue_rows.register_fake
def _(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    backend: str,
) -> Tensor:
    return student_logprobs.new_empty((EPILOGUE_CHANNELS, *active.shape))


@torch.library.custom_op("stepopsd::step_scales", mutates_args=())
def step_scales(values: Tensor, step_ids: Tensor, trajectory_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) step factors per token and per step; see ``steps.step_scales``."""
    return steps.step_scales(values, step_ids, trajectory_ids)


@step_scales.register_fake
def _(values: Tensor, step_ids: Tensor, trajectory_ids: Tensor) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), values.new_empty(values.shape)
