"""The compiled row kernels (``csrc/``): loader, choice of instruction set, launchers. No copy of the logits is made."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_WEIGHT_FNS = {"sigmoid": 0, "exp": 1}
_REBUILD = "reinstall with a C++ compiler at hand: STEPOPSD_BUILD=native pip install <path or name>"


def _load() -> ModuleType | str:
    """The extension module, or why there is none."""
    try:
        return importlib.import_module("stepopsd._native")
    except ModuleNotFoundError:
        return f"the native module is not built; {_REBUILD}"
    except ImportError as error:
        return f"the native module does not load ({error}); {_REBUILD}"


_native = _load()


def _module() -> ModuleType:
    if isinstance(_native, str):
        raise RuntimeError(_native)
    return _native


def availability(device_type: str) -> str | None:
    """None when tensors of this device type can be computed, else the reason why not."""
    if device_type != "cpu":
        return f"the native module computes CPU tensors only, not {device_type}"
    return _native if isinstance(_native, str) else None


def isas() -> list[str]:
    """The instruction sets that this machine can run, slowest first: of ``portable``, ``avx2``, ``avx512``."""
    names: list[str] = _module().supported_isas()
    return names


def isa() -> str:
    """The instruction set in use: the fastest this machine has, or the one that ``STEPOPSD_CPU_ISA`` names.

    Raises:
        ValueError: ``STEPOPSD_CPU_ISA`` names one that this machine cannot run.
    """
    names = isas()
    wanted = os.environ.get("STEPOPSD_CPU_ISA") or names[-1]
    if wanted not in names:
        raise ValueError(f"STEPOPSD_CPU_ISA must be one of {', '.join(names)} on this machine, got {wanted!r}")
    return wanted


def _check_logits(name: str, logits: torch.Tensor, shape: torch.Size) -> None:
    if logits.device.type != "cpu":
        raise ValueError(f"{name} must be a CPU tensor, got one on {logits.device}")
    if logits.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {logits.dtype}")
    if logits.shape != shape or logits.dim() != 3 or logits.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (B, R, V) with V > 0 as the other logits, got {tuple(logits.shape)}")
    if logits.stride(-1) != 1 and logits.shape[-1] > 1:
        raise ValueError(f"{name} must be contiguous along the vocabulary, got stride {logits.stride(-1)}")


def _dense(name: str, values: torch.Tensor, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    if values.device.type != "cpu" or values.dtype != dtype or values.shape != shape:
        raise ValueError(
            f"{name} must be a CPU tensor of {dtype} with shape {tuple(shape)}, "
            f"got {values.dtype} {tuple(values.shape)} on {values.device}"
        )
    return values.contiguous()


def _describe(logits: torch.Tensor) -> tuple[int, int, int, int]:
    return logits.data_ptr(), _DTYPES[logits.dtype], logits.stride(0), logits.stride(1)


def pair_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    ids: torch.Tensor,
    advantages: torch.Tensor,
    active: torch.Tensor,
    *,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
    temperature: float,
    entropy: bool,
) -> torch.Tensor:
    """Packed rows from two logits tensors, each logit read once.

    Args:
        student: (B, R, V) float32, float16 or bfloat16; any batch and row strides, V contiguous.
        teacher: As ``student``; its dtype may differ.
        ids: (B, R) int64, in [0, V) where active.
        advantages: (B, R) float32.
        active: (B, R) bool. Logits of other rows are not read; these keep A, with w = 1 and zeros elsewhere.
        alpha_clip: Half-width of the clip of w around 1.
        lambda_mix: Share of w in the shaped advantage.
        weight_fn: ``sigmoid`` or ``exp``.
        temperature: Divides the logits, > 0.
        entropy: Whether to compute the entropies, else they are 0.

    Returns:
        (7, B, R) float32: shaped, weight, delta, log-prob student, teacher, entropy student, teacher. NaN or +inf
        anywhere in an active row, or a row of nothing but -inf, gives NaN for that row alone. A row's bits depend
        on the instruction set, not on the batch, the strides or the number of threads.

    Raises:
        IndexError: An active row's id lies outside [0, V).
    """
    native = _module()
    shape, (batch, rows, vocab) = active.shape, student.shape
    _check_logits("student", student, torch.Size((*shape, vocab)))
    _check_logits("teacher", teacher, student.shape)
    ids = _dense("ids", ids, torch.int64, shape)
    advantages = _dense("advantages", advantages, torch.float32, shape)
    active = _dense("active", active, torch.bool, shape)
    packed = torch.empty((7, batch, rows), dtype=torch.float32)
    bad = native.pair_rows(
        _describe(student),
        _describe(teacher),
        ids.data_ptr(),
        advantages.data_ptr(),
        active.data_ptr(),
        packed.data_ptr(),
        batch,
        rows,
        vocab,
        alpha_clip,
        lambda_mix,
        _WEIGHT_FNS[weight_fn],
        temperature,
        entropy,
        isa(),
        torch.get_num_threads(),
    )
    if bad >= 0:
        place = divmod(bad, rows)
        raise IndexError(f"token_ids must lie in [0, {vocab}), got {int(ids[place])} at position {place}")
    return packed


def epilogue_rows(
    student_logprobs: torch.Tensor,
    teacher_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    active: torch.Tensor,
    *,
    alpha_clip: float,
    lambda_mix: float,
    weight_fn: str,
) -> torch.Tensor:
    """(3, M) float32 [shaped, weight, delta] from (M,) float32 log-probs; other rows as in ``pair_rows``."""
    native = _module()
    shape = active.shape
    names = ("student_logprobs", "teacher_logprobs", "advantages")
    floats = [
        _dense(name, values, torch.float32, shape)
        for name, values in zip(names, (student_logprobs, teacher_logprobs, advantages), strict=True)
    ]
    active = _dense("active", active, torch.bool, shape)
    packed = torch.empty((3, *shape), dtype=torch.float32)
    native.epilogue_rows(
        *(x.data_ptr() for x in floats),
        active.data_ptr(),
        packed.data_ptr(),
        active.numel(),
        alpha_clip,
        lambda_mix,
        _WEIGHT_FNS[weight_fn],
    )
    return packed
