"""Input checks of the ops: each error names the argument, the value and what is allowed. No check reads values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from stepopsd.ops.segments import StepSegments

WEIGHT_FNS = ("sigmoid", "exp")
STEP_NORMS = ("equal_step_mean_abs", "equal_step_ratio", "none")
_FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_INT_DTYPES = (torch.int64, torch.int32)


def options(alpha_clip: float, lambda_mix: float, weight_fn: str, step_norm: str) -> None:
    """Raise unless every scalar option is in range."""
    if not 0 < alpha_clip <= 1:
        raise ValueError(f"alpha_clip must lie in (0, 1], got {alpha_clip}")
    if not 0 <= lambda_mix <= 1:
        raise ValueError(f"lambda_mix must lie in [0, 1], got {lambda_mix}")
    if weight_fn not in WEIGHT_FNS:
        raise ValueError(f"weight_fn must be one of {', '.join(WEIGHT_FNS)}, got {weight_fn!r}")
    if step_norm not in STEP_NORMS:
        raise ValueError(f"step_norm must be one of {', '.join(STEP_NORMS)}, got {step_norm!r}")


def forms(
    student_logits: torch.Tensor | None,
    teacher_logits: torch.Tensor | None,
    token_ids: torch.Tensor | None,
    student_logprobs: torch.Tensor | None,
    teacher_logprobs: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Student, teacher and ids of the logits form, or student, teacher and None of the log-prob form.

    Raises:
        ValueError: The call is in neither form or mixes them.
    """
    no_logits = student_logits is None and teacher_logits is None
    no_logprobs = student_logprobs is None and teacher_logprobs is None
    if student_logits is not None and teacher_logits is not None and token_ids is not None and no_logprobs:
        return student_logits, teacher_logits, token_ids
    if student_logprobs is not None and teacher_logprobs is not None and no_logits:
        return student_logprobs, teacher_logprobs, None
    given = {
        "student_logits": student_logits,
        "teacher_logits": teacher_logits,
        "token_ids": token_ids,
        "student_logprobs": student_logprobs,
        "teacher_logprobs": teacher_logprobs,
    }
    names = ", ".join(name for name, x in given.items() if x is not None) or "none of them"
    raise ValueError(
        "give either student_logits, teacher_logits and token_ids, or student_logprobs and teacher_logprobs; "
        f"got {names}"
    )


def temperature(x: float | torch.Tensor, shape: torch.Size, device: torch.device) -> float | torch.Tensor:
    """``x`` as a float, or as the (...) float32 tensor that it is; raise unless > 0. Tensors' values are not read."""
    if isinstance(x, torch.Tensor):
        _dtype("temperature", x, (torch.float32,))
        rows("temperature", x, shape, device)
        return x
    if not 0 < x < math.inf:
        raise ValueError(f"temperature must be finite and greater than 0, got {x}")
    return float(x)


def logprob_options(temperature: float | torch.Tensor, entropy: bool) -> None:
    """Raise where an option of the logits form is asked of ready log-probs."""
    if isinstance(temperature, torch.Tensor) or temperature != 1.0:
        raise ValueError(f"temperature must be 1.0 with ready log-probs (it is already in them), got {temperature}")
    if entropy:
        raise ValueError("entropy must be False with ready log-probs (it needs logits), got True")


def logits(name: str, x: torch.Tensor) -> torch.dtype:
    """The dtype to compute in; raise unless ``x`` is floating (..., V >= 1) with V contiguous."""
    _dtype(name, x, _FLOAT_DTYPES)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"{name} must have shape (..., V) with V >= 1, got {tuple(x.shape)}")
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(
            f"{name} must be contiguous along the vocabulary (stride 1), got stride {x.stride(-1)}; "
            "call .contiguous() where the copy is acceptable"
        )
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def logits_pair(student: torch.Tensor, teacher: torch.Tensor) -> torch.dtype:
    """The dtype to compute in; raise unless both are logits of one shape, dtype and device."""
    dtype = logits("student_logits", student)
    if _twins(student, teacher):
        return dtype
    logits("teacher_logits", teacher)
    if student.dtype != teacher.dtype:
        raise TypeError(f"teacher_logits must have the dtype of student_logits {student.dtype}, got {teacher.dtype}")
    return _alike("logits", student, teacher)


def _twins(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether what holds of the one tensor holds of the other; cheaper than to check it."""
    return (
        isinstance(b, torch.Tensor)
        and a.dtype == b.dtype
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.device == b.device
    )


def logprobs(student: torch.Tensor, teacher: torch.Tensor) -> torch.dtype:
    """The dtype to compute in; raise unless both are floating, of one shape and device."""
    _dtype("student_logprobs", student, _FLOAT_DTYPES)
    _dtype("teacher_logprobs", teacher, _FLOAT_DTYPES)
    return _alike("logprobs", student, teacher)


def _alike(what: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.dtype:
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher_{what} must have the shape of student_{what} {tuple(student.shape)}, got {tuple(teacher.shape)}"
        )
    same_device(f"teacher_{what}", teacher, student.device)
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def floats(name: str, x: torch.Tensor) -> None:
    """Raise TypeError unless ``x`` is bf16, fp16, fp32 or fp64."""
    _dtype(name, x, _FLOAT_DTYPES)


def matrix(name: str, x: torch.Tensor) -> None:
    """Raise ValueError unless ``x`` has two dimensions."""
    if x.ndim != 2:
        raise ValueError(f"{name} must have shape (N, T), got {tuple(x.shape)}")


def integers(name: str, x: torch.Tensor) -> None:
    """Raise TypeError unless ``x`` is int64 or int32."""
    _dtype(name, x, _INT_DTYPES)


def advantages(x: torch.Tensor, shape: torch.Size, device: torch.device, compute: torch.dtype) -> None:
    """Raise unless ``x`` is (...) float32, or float64 where the computation is float64."""
    _dtype("advantages", x, (torch.float32,) if compute == torch.float32 else (torch.float32, torch.float64))
    rows("advantages", x, shape, device)


def token_ids(x: torch.Tensor, shape: torch.Size, device: torch.device) -> None:
    """Raise unless ``x`` is (...) int64 or int32. Values are checked where they are read."""
    integers("token_ids", x)
    rows("token_ids", x, shape, device)


def mask(x: torch.Tensor, shape: torch.Size, device: torch.device) -> None:
    """Raise unless ``x`` is (...) bool."""
    _dtype("mask", x, (torch.bool,))
    rows("mask", x, shape, device)


def rows(name: str, x: torch.Tensor, shape: torch.Size, device: torch.device) -> None:
    """Raise unless ``x`` has the leading shape (...) and the device."""
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, one value per token, got {tuple(x.shape)}")
    same_device(name, x, device)


def constant(name: str, x: object) -> None:
    """Raise where a gradient is asked for something that gets none."""
    if isinstance(x, torch.Tensor) and x.requires_grad:
        raise ValueError(f"{name} must not require a gradient: it gets none")


def same_device(name: str, x: torch.Tensor, device: torch.device) -> None:
    """Raise ValueError unless ``x`` lies on ``device``."""
    if x.device != device:
        raise ValueError(f"{name} must be on {device} like the other tensors, got {x.device}")


def trajectories(x: torch.Tensor, shape: torch.Size, device: torch.device) -> None:
    """Raise unless ``x`` is integer and (...) or (N,), N the first leading dimension."""
    integers("trajectory_ids", x)
    same_device("trajectory_ids", x, device)
    if x.shape == shape or (shape and x.shape == shape[:1]):
        return
    allowed = f"{tuple(shape)}" + (f" or {tuple(shape[:1])}" if shape else "")
    raise ValueError(f"trajectory_ids must have shape {allowed}, got {tuple(x.shape)}")


def segments(x: StepSegments, shape: torch.Size, device: torch.device, step_ids: torch.Tensor | None) -> None:
    """Raise unless the segments were made for this many tokens on this device, and their step ids are given too."""
    if step_ids is None:
        raise ValueError("step_ids must be given with segments (the ids that these were made from), got None")
    if x.order.numel() != shape.numel():
        raise ValueError(f"segments must be those of {shape.numel()} tokens, got segments of {x.order.numel()}")
    same_device("segments", x.order, device)


def _dtype(name: str, x: torch.Tensor, allowed: Sequence[torch.dtype]) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in allowed:
        raise TypeError(f"{name} must be {', '.join(str(d) for d in allowed)}, got {x.dtype}")
