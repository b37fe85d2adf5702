"""The CUDA C++ row kernels (``csrc/cuda``): availability and launchers. No copy of the logits is made."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stepopsd.ops.losses import LossOptions
from stepopsd.ops.results import STATISTICS
from stepopsd.ops.segments import StepSegments

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_WEIGHT_FNS = {"sigmoid": 0, "exp": 1}
_STEP_NORMS = {"equal_step_mean_abs": 0, "equal_step_ratio": 1, "none": 0}
_OBJECTIVES = {"grpo": 0, "dr_grpo": 0, "dapo": 0, "bnpo": 0, "cispo": 1, "reinforce": 2}
_MERGES = {"automatic": 0, "workspace": 1}
_REBUILD = "reinstall where nvcc is at hand: STEPOPSD_CUDA=1 pip install <path or name>"


@functools.cache
def _load() -> ModuleType | str:
    """The extension module, or why it offers no CUDA kernels."""
    try:
        module = importlib.import_module("stepopsd._native")
    except ModuleNotFoundError:
        return f"the native module is not built; {_REBUILD}"
    except ImportError as error:
        return f"the native module does not load ({error}); {_REBUILD}"
    return module if hasattr(module, "CudaScore") else f"the native module was built without CUDA kernels; {_REBUILD}"


def _module() -> ModuleType:
    module = _load()
    if isinstance(module, str):
        raise RuntimeError(module)
    return module


def architectures() -> tuple[str, ...]:
    """What the kernels were compiled for, as in ``("sm_80", "sm_90")``; newer chips take the PTX of the last one.

    Raises:
        RuntimeError: The native module is missing or has no CUDA kernels.
    """
    return tuple(f"sm_{number // 10}" for number in _module().cuda_archs)


@functools.cache
def _obstacle(device: int) -> str | None:
    reason: str = _module().cuda_obstacle(device)
    return f"{reason}; the kernels were compiled for {', '.join(architectures())}" if reason else None


def availability(device_type: str) -> str | None:
    """None when tensors of this device type can be computed, else the reason why not.

    What counts is the current CUDA device: it must have compute capability 8.0 or higher, and a driver that runs the
    CUDA version of the build.
    """
    if device_type != "cuda":
        return f"the CUDA kernels compute CUDA tensors only, not {device_type}"
    if isinstance(module := _load(), str):
        return module
    if torch.version.cuda is None:
        return "this torch is a build without CUDA"
    if not torch.cuda.is_available():
        return _obstacle(0) or "torch sees no CUDA device"
    return _obstacle(torch.cuda.current_device())


def _describe(logits: Tensor) -> tuple[int, int, int, int]:
    if logits.dtype not in _DTYPES:
        raise TypeError(f"logits must be float32, float16 or bfloat16, got {logits.dtype}")
    return logits.data_ptr(), _DTYPES[logits.dtype], logits.stride(0), logits.stride(1)


def _per_row(temperature: float | Tensor) -> tuple[float, int]:
    return (1.0, temperature.data_ptr()) if isinstance(temperature, Tensor) else (temperature, 0)


def _stream(device: torch.device) -> int:
    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream


def _launch(problem: Any, device: torch.device) -> None:
    """Queues the problem on the device's current stream, with scratch memory from torch's allocator."""
    # Floats, so that memory which nobody wrote shows in the tests.
    memory = torch.empty(-(-problem.workspace // 4), dtype=torch.float32, device=device)
    problem.launch(memory.data_ptr(), _stream(device))


def score_rows(
    logits: Sequence[Tensor],
    ids: Tensor,
    active: Tensor,
    *,
    temperature: float | Tensor,
    entropy: bool,
    normaliser: bool = False,
    merge: str = "automatic",
) -> Tensor:
    """Log-prob, log-sum-exp and entropy of each row, each logit read once.

    Rows that are not active are not read and give zeros. In an active row NaN, +inf, or nothing but -inf gives NaN in
    that row alone, and an id outside [0, V) a NaN log-prob. A row's bits follow from its values alone. Nothing waits
    for the device, so the call can be captured in a CUDA graph.

    Args:
        logits: One or two (B, R, V) CUDA tensors in fp32, fp16 or bf16; any batch and row strides, V contiguous.
        ids: (...) int64 contiguous, B·R of them, in [0, V) where active.
        active: (...) bool contiguous.
        temperature: Divides the logits; a number > 0, or (...) fp32 contiguous.
        entropy: Whether to compute the entropies, else they are 0.
        normaliser: Whether to add what ``gradient_rows`` needs: peak and log-mass, see ``dispatch.Backend``.
        merge: How the parts of a long row come together: ``automatic`` or ``workspace``. The bits are the same.

    Returns:
        (K, 3, ...) fp32 for K logits tensors: log-prob of the id, log-sum-exp, entropy in nats; (K, 5, ...) with the
        normaliser.

    Raises:
        RuntimeError: The launch was refused; the message is that of the CUDA runtime.
        TypeError: Logits of another dtype.
    """
    module, first = _module(), logits[0]
    device, (batch, rows, vocab) = first.device, first.shape
    out = torch.empty((len(logits), 5 if normaliser else 3, *ids.shape), dtype=torch.float32, device=device)
    if out.numel() == 0:
        return out
    problem = module.CudaScore(
        [_describe(x) for x in logits],
        ids.data_ptr(),
        active.data_ptr(),
        *_per_row(temperature),
        batch,
        rows,
        vocab,
        entropy,
        normaliser,
        out.data_ptr(),
        device.index,
        _MERGES[merge],
    )
    _launch(problem, device)
    return out


def gradient_rows(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    normaliser: Tensor,
    coefficients: Tensor,
    *,
    temperature: float | Tensor,
    out: Tensor,
) -> None:
    """Write (a·[j = id] + p_j·(b + c·ln p_j)) / T into ``out``; each logit is read once, each element written once.

    Rows that are not active, or whose a, b and c are all 0, are set to 0 and their logits not read. An id outside
    [0, V), NaN, +inf, or nothing but -inf gives NaN in that row alone. A row's bits follow from its values alone.
    Nothing waits for the device.

    Args:
        logits: (B, R, V) CUDA tensor in fp32, fp16 or bf16; any batch and row strides, V contiguous.
        ids: (B, R) int64 contiguous.
        active: (B, R) bool contiguous.
        normaliser: (2, B, R) fp32 contiguous, peak and log-mass from ``score_rows``.
        coefficients: (3, B, R) fp32 contiguous: a, b and c.
        temperature: Divides the logits; a number > 0, or (B, R) fp32 contiguous.
        out: (B, R, V) of the dtype of the logits, V contiguous; in their very memory, or in none of it.

    Raises:
        RuntimeError: The launch was refused; the message is that of the CUDA runtime.
        TypeError: Logits of another dtype.
        ValueError: ``out`` is of another dtype than the logits.
    """
    if logits.numel() == 0:
        return
    problem = _module().CudaGradient(
        _describe(logits),
        ids.data_ptr(),
        active.data_ptr(),
        normaliser.data_ptr(),
        coefficients.data_ptr(),
        *_per_row(temperature),
        *logits.shape,
        _describe(out),
        logits.device.index,
    )
    problem.launch(_stream(logits.device))


def loss_rows(
    logits: Tensor,
    ids: Tensor,
    active: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    options: LossOptions,
    *,
    temperature: float | Tensor,
    out: Tensor,
    merge: str = "automatic",
) -> Tensor:
    """Score rows for a token-level loss and write its gradient into ``out``, the row staying on the chip in between.

    One read and one write of each logit on devices with thread-block clusters (compute capability 9.0 on) where an
    eighth of a row fits into the shared memory of a thread block; else the score and gradient kernels run in turn. The
    scores have the bits of ``score_rows``, the gradient is that of ``gradient_rows``. Nothing waits for the device.

    Args:
        logits: (B, R, V) CUDA tensor in fp32, fp16 or bf16; any batch and row strides, V contiguous.
        ids: (B, R) int64 contiguous.
        active: (B, R) bool contiguous; nothing of the other rows is read, their scores and gradient are 0.
        old: (B, R) fp32 contiguous log-probs of the policy that took the samples, as the next three; None: the ratio
            is 1.
        ref: (B, R) of the reference policy, or None.
        advantages: (B, R).
        weights: (B, R) of the tokens in the loss.
        options: Any loss but ``gspo``.
        temperature: Divides the logits; a number > 0, or (B, R) fp32 contiguous.
        out: (B, R, V) of the dtype of the logits, V contiguous; in their very memory, or in none of it.
        merge: ``automatic``, or ``workspace`` for two visits. The bits are the same.

    Returns:
        (5, B, R) fp32, those of ``score_rows`` with entropy and normaliser.

    Raises:
        RuntimeError: The launch was refused; the message is that of the CUDA runtime.
        TypeError: Logits of another dtype.
        ValueError: A loss that is not token-level, or ``out`` of another dtype than the logits.
    """
    if options.loss not in _OBJECTIVES:
        raise ValueError(f"loss_rows computes {', '.join(_OBJECTIVES)}, not {options.loss!r}")
    scores = torch.empty((5, *ids.shape), dtype=torch.float32, device=logits.device)
    if scores.numel() == 0:
        return scores
    numbers = (1 - options.clip_low, 1 + options.clip_high, options.dual_clip, options.kl_coef, options.entropy_coef)
    problem = _module().CudaLoss(
        _describe(logits),
        ids.data_ptr(),
        active.data_ptr(),
        [0 if x is None else x.data_ptr() for x in (old, ref, advantages, weights)],
        _OBJECTIVES[options.loss],
        numbers,
        *_per_row(temperature),
        *logits.shape,
        _describe(out),
        scores.data_ptr(),
        logits.device.index,
        _MERGES[merge],
    )
    _launch(problem, logits.device)
    return scores


def scale_rows(rows: Tensor, factor: Tensor) -> None:
    """Multiply (B, R, V) fp32, fp16 or bf16 in place by the 0-d fp32 ``factor`` on its device.

    Where that is 1 no element is read. Nothing waits for the device.

    Raises:
        RuntimeError: The launch was refused; the message is that of the CUDA runtime.
        TypeError: Rows of another dtype.
    """
    if rows.numel():
        scale = factor.to(torch.float32)
        problem = _module().CudaScale(_describe(rows), scale.data_ptr(), *rows.shape, rows.device.index)
        problem.launch(_stream(rows.device))


def shape_rows(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    advantages: Tensor,
    active: Tensor,
    segments: StepSegments | None,
    *,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    step_norm: str,
) -> tuple[Tensor, Tensor]:
    """Shaped advantages, step budget and statistics from ready log-probs, in one launch; see ``dispatch.Backend``.

    Tokens that are not active keep their advantage bit for bit, with weight 1, delta 0 and scale 1; their log-probs
    are not read. Sums run in a fixed order, so that the bits are the same every time.

    Args:
        student_logprobs: (...) fp32 contiguous CUDA tensor, as the next two.
        teacher_logprobs: (...).
        advantages: (...).
        active: (...) bool contiguous.
        segments: Steps and trajectories of the tokens, or None for no step budget.
        alpha_clip: Half-width of the clip of w around 1.
        lambda_mix: Share of w in the shaped advantage.
        weight_fn: ``sigmoid`` or ``exp``.
        step_norm: ``equal_step_mean_abs`` or ``equal_step_ratio``; not used without ``segments``.

    Returns:
        (4, ...) fp32 shaped, weight, delta, scale; and (17,) float64 in the order of ``results.STATISTICS``.

    Raises:
        RuntimeError: The launch was refused; the message is that of the CUDA runtime.
    """
    device, tokens = advantages.device, advantages.numel()
    planes = torch.empty((4, *advantages.shape), dtype=torch.float32, device=device)
    statistics = torch.empty(len(STATISTICS), dtype=torch.float64, device=device)
    problem = _module().CudaShape(
        student_logprobs.data_ptr(),
        teacher_logprobs.data_ptr(),
        advantages.data_ptr(),
        active.data_ptr(),
        tokens,
        [x.data_ptr() for x in segments.tensors] if segments else [0, 0, 0, 0],
        alpha_clip,
        lambda_mix,
        _WEIGHT_FNS[weight_fn],
        _STEP_NORMS[step_norm],
        planes.data_ptr(),
        statistics.data_ptr(),
        device.index,
    )
    _launch(problem, device)
    return planes, statistics
