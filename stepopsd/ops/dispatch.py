"""Which backend computes the row kernels, and why another one cannot."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from stepopsd.ops.future_options import FutureOptions
from stepopsd.ops.losses import LossOptions
from stepopsd.ops.segments import StepSegments

_MODULES = {
    "triton": f"{__package__}.triton",
    "cuda": f"{__package__}.cuda",
    "cpu": f"{__package__}.native",
    "torch": f"{__package__}.torch_backend",
}
BACKENDS = tuple(_MODULES)
_PREFERENCE = {"cuda": ("triton", "cuda"), "cpu": ("cpu",)}  # and torch, where these are not available


class Backend(Protocol):
    """What each backend module offers; nothing of a row outside ``active`` is read but its advantage."""

    def availability(self, device_type: str) -> str | None:
        """None when tensors of this device type can be computed, else the reason why not."""

    def score_rows(
        self,
        logits: Sequence[Tensor],
        ids: Tensor,
        active: Tensor,
        *,
        temperature: float | Tensor,
        entropy: bool,
        normaliser: bool = False,
    ) -> Tensor:
        """K = 1 or 2 logits (B, R, V) to (K, 3, ...): log-prob of the id, log-sum-exp and entropy, in nats.

        ``ids`` int64 and ``active`` bool are contiguous, like the temperature where it is a tensor: B·R values of one
        shape (...), which is that of the result too. The entropy is 0 unless asked for, and so is everything in rows
        that are not active.

        ``normaliser`` asks for (K, 5, ...); the last two channels, peak and log-mass, are what ``gradient_rows`` of
        the same backend needs: Σ_j 2^(x_j·log2(e)/T - peak) = 2^log_mass, with a finite peak about the row's maximum.
        In a row of -inf only the log-mass is -inf; where a logit is NaN or +inf it is NaN.
        """

    def gradient_rows(
        self,
        logits: Tensor,
        ids: Tensor,
        active: Tensor,
        normaliser: Tensor,
        coefficients: Tensor,
        *,
        temperature: float | Tensor,
        out: Tensor,
    ) -> None:
        """Write (a·[j = id] + p_j·(b + c·ln p_j)) / T into ``out`` (B, R, V), with p·ln p = 0 where p = 0.

        ``normaliser`` (2, B, R) comes from ``score_rows``; ``coefficients`` (3, B, R) are a, b and c; both contiguous.
        ``out`` has the dtype of the logits, V contiguous, any other strides, and may be the very memory of the
        logits. Rows that are not active, or whose a, b and c are all 0, are set to 0 and their logits not read.
        """

    def scale_rows(self, rows: Tensor, factor: Tensor) -> None:
        """Multiply (B, R, V) in place by the 0-d ``factor`` (fp32, on its device), doing nothing where that is 1."""

    def loss_rows(
        self,
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
    ) -> Tensor:
        """Score rows and write the gradient of a token-level loss into ``out``, each logit coming from memory once.

        Not every backend has it: ``fuses_losses``. Old and reference log-probs, advantages and weights are (B, R) fp32
        and contiguous; slopes are those of ``losses.policy_terms``, everything else is as in ``gradient_rows``.
        Returns the (5, B, R) of ``score_rows`` with entropies and normaliser.
        """

    def shape_rows(
        self,
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
        """Contiguous (...) log-probs to (4, ...) shaped, weight, delta, scale, and the statistics of ``results``.

        The step budget runs where ``segments`` are given, which callers leave out at λ = 0.
        """

    def oar_rows(
        self,
        scores: Tensor,
        mask: Tensor,
        *,
        level: float,
        beta: float,
        floor: float,
        absolute: bool,
        preserve: bool,
        min_tokens: int,
    ) -> Tensor:
        """Contiguous (N, T) scores and mask to (N, T) weights, as ``oar_reshape`` says; not every backend has it."""

    def future_rows(
        self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, entropies: Tensor | None, options: FutureOptions
    ) -> Tensor:
        """Contiguous (N, T) to (1, N, T) future values, to (2, N, T) with branching scores where there are entropies.

        As ``future_branching`` says; not every backend has it.
        """


@functools.cache
def _load(name: str) -> Backend | str:
    try:
        return cast(Backend, importlib.import_module(_MODULES[name]))
    except ImportError as error:
        return f"{_MODULES[name]} cannot be imported: {error}"


def unavailable(name: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
    """None when backend ``name`` computes tensors of this device type and dtype, else the reason why not."""
    if dtype == torch.float64 and name != "torch":
        return "float64 input is computed by the torch backend only"
    module = _load(name)
    return module if isinstance(module, str) else module.availability(device_type)


def resolve(backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """The name of the backend to use.

    Args:
        backend: ``auto`` or one of ``BACKENDS``. ``auto`` takes Triton on CUDA tensors, the native kernel on CPU
            tensors, and what comes next in line where these are not available: CUDA C++, torch.
        device_type: ``tensor.device.type``.
        dtype: Dtype of the logits or log-probs.

    Raises:
        ValueError: Unknown name, or an explicitly named backend that is not available, with the reason.
    """
    if backend == "auto":
        for name in _PREFERENCE.get(device_type, ()):
            if unavailable(name, device_type, dtype) is None:
                return name
        return "torch"
    if backend not in _MODULES:
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    reason = unavailable(backend, device_type, dtype)
    if reason is not None:
        raise ValueError(f"backend {backend!r} is not available for {dtype} tensors on {device_type}: {reason}")
    return backend


def resolve_gradients(backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """As ``resolve``, for calls that need a gradient: torch in place of a backend without gradient kernels.

    Score and gradient of a row must come from one backend, so such a call is computed by torch as a whole.
    """
    name = resolve(backend, device_type, dtype)
    return name if no_gradients(name) is None else "torch"


def no_gradients(name: str) -> str | None:
    """None when backend ``name`` computes gradients itself, else the reason why torch does it in its place."""
    module = _load(name)
    if isinstance(module, str):
        return module
    return None if hasattr(module, "gradient_rows") else f"{_MODULES[name]} has no gradient_rows"


def lacks(name: str, kernel: str) -> str | None:
    """None when backend ``name`` has ``kernel``, else the reason why not."""
    module = load(name)
    if not hasattr(module, kernel):
        return f"{_MODULES[name]} has no {kernel}"
    reason: str | None = module.lacks(kernel) if hasattr(module, "lacks") else None
    return reason


def resolve_kernel(kernel: str, backend: str, device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """As ``resolve``, for a kernel that not every backend has: ``auto`` passes over those that lack it.

    Raises:
        ValueError: Also for a named backend that lacks the kernel, with the reason.
    """
    if backend != "auto":
        name = resolve(backend, device_type, dtype)
        reason = lacks(name, kernel)
        if reason is not None:
            raise ValueError(f"backend {name!r} does not compute {kernel}: {reason}")
        return name
    for name in _PREFERENCE.get(device_type, ()):
        if unavailable(name, device_type, dtype) is None and lacks(name, kernel) is None:
            return name
    return "torch"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def fuses_losses(backend: str, device_type: str, dtype: torch.dtype) -> bool:
    """Whether the backend that computes gradients of these tensors has ``loss_rows``."""
    return hasattr(load(resolve_gradients(backend, device_type, dtype)), "loss_rows")


def load(name: str) -> Backend:
    """The backend's module; ``name`` comes from ``resolve``."""
    module = _load(name)
    if isinstance(module, str):
        raise ValueError(f"backend {name!r} is not available: {module}")
    return module


def explain(device: torch.device | str) -> dict[str, str]:
    """Backend name -> "available" or the reason why it cannot compute tensors on ``device``."""
    device_type = torch.device(device).type
    return {name: unavailable(name, device_type) or "available" for name in BACKENDS}


def explain_gradients(device: torch.device | str) -> dict[str, str]:
    """As ``explain``, for calls that need a gradient: also says where torch computes it, and why."""
    reasons = explain(device)
    for name, reason in reasons.items():
        missing = no_gradients(name) if reason == "available" else None
        if missing is not None:
            reasons[name] = f"computed by torch: {missing}"
    return reasons
