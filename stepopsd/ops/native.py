"""The compiled CPU kernels (``csrc/cpu/``): loader, choice of instruction set, launchers. Logits are never copied.

The launchers do as little as they can, since their cost counts at every call: shapes, dtypes and devices are checked by
the public functions, and the layouts that ``dispatch.Backend`` promises are taken for granted.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from stepopsd.ops.losses import LossOptions
from stepopsd.ops.native_tokens import future_rows, oar_rows
from stepopsd.ops.results import STATISTICS
from stepopsd.ops.segments import StepSegments

__all__ = [
    "availability", "future_rows", "gradient_rows", "isa", "isas", "lacks", "loss_rows", "oar_rows", "powers_of_two",
    "read_loops", "read_probe", "scale_rows", "score_rows", "shape_rows", "step_segments",
]  # fmt: skip

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_WEIGHT_FNS = {"sigmoid": 0, "exp": 1}
_STEP_NORMS = {"equal_step_mean_abs": 0, "equal_step_ratio": 1, "none": 0}
_OBJECTIVES = {"grpo": 0, "dr_grpo": 0, "dapo": 0, "bnpo": 0, "cispo": 1, "reinforce": 2}
_NO_SEGMENTS = (0, 0, 0, 0)
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


def lacks(kernel: str) -> str | None:
    """None when the built module has ``kernel``, else why not."""
    return None if hasattr(_module(), kernel) else f"the native module was built before it had {kernel}; {_REBUILD}"


def isas() -> list[str]:
    """The instruction sets that this machine can run, slowest first: of portable, avx2, avx512, avx512bf16."""
    names: list[str] = _module().supported_isas()
    return names


def isa() -> str:
    """The instruction set in use: the fastest this machine has, or the one that ``STEPOPSD_CPU_ISA`` names.

    Raises:
        ValueError: ``STEPOPSD_CPU_ISA`` names one that this machine cannot run.
    """
    name: str = _module().isa()
    return name


def _strided(x: Tensor) -> tuple[int, ...]:
    return x.data_ptr(), _DTYPES[x.dtype], *x.stride()[:2]


def _rows(ids: Tensor, active: Tensor, temperature: float | Tensor, logits: Tensor) -> tuple[int | float, ...]:
    """What the kernels are told of each row, and the shape (B, R, V)."""
    number, per_row = (temperature, 0) if isinstance(temperature, float) else (1.0, temperature.data_ptr())
    return ids.data_ptr(), active.data_ptr(), number, per_row, *logits.shape


def score_rows(
    logits: Sequence[Tensor],
    ids: Tensor,
    active: Tensor,
    *,
    temperature: float | Tensor,
    entropy: bool,
    normaliser: bool = False,
) -> Tensor:
    """Log-prob of each id, log-sum-exp and entropy of every active row; each logit is read once.

    Args:
        logits: K = 1 or 2 tensors (B, R, V) of one shape, float32, float16 or bfloat16; any strides over B and R, V
            contiguous. Dtypes and strides may differ.
        ids: (...) int64, B·R of them in [0, V) where active; contiguous, as the next two.
        active: (...) bool. Nothing of the other rows is read, their results are 0.
        temperature: Divides the logits, > 0; a number or (...) float32.
        entropy: Whether to compute the entropies, else they are 0.
        normaliser: Whether to return what ``gradient_rows`` needs.

    Returns:
        (K, 3, ...) float32, in nats; (K, 5, ...) with the normaliser, the last two channels of which are base 2:
        Σ_j 2^(x_j·log2(e)/T - peak) = 2^log_mass. Log-probs are at most 0. NaN or +inf anywhere in a row, or nothing
        but -inf, gives NaN for that row of that tensor alone, but the peak is finite, and the log-mass of -inf is
        -inf. A row's bits follow from its values, its temperature and the instruction set: not from the rows beside
        it, its place in memory, K or the number of threads.

    Raises:
        IndexError: An active row's id lies outside [0, V). No logit has been read then.
        ValueError: ``STEPOPSD_CPU_ISA`` names an instruction set that this machine cannot run.
    """
    out = torch.empty((len(logits), 5 if normaliser else 3, *ids.shape), dtype=torch.float32)
    _module().score_rows(
        [_strided(x) for x in logits],
        _rows(ids, active, temperature, logits[0]),
        entropy,
        normaliser,
        out.data_ptr(),
        torch.get_num_threads(),
    )
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
    """Write (a·[j = id] + p_j·(b + c·ln p_j)) / T, each logit being read once and each element written once.

    Args:
        logits, ids, active, temperature: As in ``score_rows``.
        normaliser: (2, B, R) float32, contiguous: peak and log-mass from ``score_rows``. Where the log-mass is NaN or
            -inf, so is the row NaN.
        coefficients: (3, B, R) float32, contiguous: a, b, c. Where all are 0, and where rows are not active, 0 is
            written and no logit read.
        out: (B, R, V) of the logits' dtype, V contiguous, rows that do not overlap; may be the very memory of the
            logits. Rounded to nearest even once. An element's bits follow from its logit and what is given of its row.

    Raises:
        IndexError: An active row's id lies outside [0, V). Nothing has been written then.
        ValueError: ``STEPOPSD_CPU_ISA`` names an instruction set that this machine cannot run.
    """
    _module().gradient_rows(
        _strided(logits),
        _strided(out),
        _rows(ids, active, temperature, logits),
        normaliser.data_ptr(),
        coefficients.data_ptr(),
        torch.get_num_threads(),
    )


def scale_rows(rows: Tensor, factor: Tensor) -> None:
    """Multiply (B, R, V) rows in place by the 0-d ``factor`` in float32; nothing is done where that is 1."""
    number = float(factor)
    if number == 1.0:
        return
    _module().scale_rows(_strided(rows), *rows.shape, number, torch.get_num_threads())


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
) -> Tensor:
    """Score every active row and write its gradient of a token-level policy loss while it is in the cache.

    Args:
        logits, ids, active, temperature: As in ``score_rows``.
        old: (B, R) float32, contiguous, as the next three: log-probs of the policy that took the samples. None: that
            is this policy.
        ref: Log-probs of the reference policy, or None.
        advantages, weights: Of each token. Nothing of the four is read outside ``active``.
        options: Of any loss but ``gspo``; slopes are those of ``losses.policy_terms``.
        out: As in ``gradient_rows``.

    Returns:
        (5, B, R) as ``score_rows`` with entropies and normaliser, of the same bits. Those of ``out`` are what
        ``gradient_rows`` writes from the coefficients, whatever the number of threads.

    Raises:
        IndexError: An active row's id lies outside [0, V). Nothing has been written then.
        ValueError: A sequence-level loss; ``STEPOPSD_CPU_ISA`` names an instruction set that this machine cannot run.
    """
    if options.loss not in _OBJECTIVES:
        raise ValueError(f"loss_rows computes {', '.join(_OBJECTIVES)}, not {options.loss!r}")
    scores = torch.empty((5, *ids.shape), dtype=torch.float32)
    numbers = 1 - options.clip_low, 1 + options.clip_high, options.dual_clip, options.kl_coef, options.entropy_coef
    _module().loss_rows(
        _strided(logits),
        _strided(out),
        _rows(ids, active, temperature, logits),
        [0 if x is None else x.data_ptr() for x in (old, ref, advantages, weights)],
        _OBJECTIVES[options.loss],
        numbers,
        scores.data_ptr(),
        torch.get_num_threads(),
    )
    return scores


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
    """Shaped advantages, their parts and statistics from ready log-probs, in one call and one order of addition.

    Args:
        student_logprobs, teacher_logprobs, advantages: (...) float32, contiguous.
        active: (...) bool, contiguous. The log-probs of other tokens are not read; these keep A, with w = 1, Δ = 0 and
            c = 1.
        segments: Steps for the budget, or None for no budget.
        alpha_clip: Half-width of the clip of w around 1.
        lambda_mix: Share of w in the shaped advantage; at 0 that is A bit for bit.
        weight_fn: ``sigmoid`` or ``exp``.
        step_norm: ``equal_step_mean_abs`` or ``equal_step_ratio``; not used without ``segments``.

    Returns:
        (4, ...) float32 shaped, weight, delta and scale, and (17,) float64 in the order of ``results.STATISTICS``.
    """
    planes = torch.empty((4, *active.shape), dtype=torch.float32)
    statistics = torch.empty(len(STATISTICS), dtype=torch.float64)
    _module().shape_rows(
        (student_logprobs.data_ptr(), teacher_logprobs.data_ptr(), advantages.data_ptr(), active.data_ptr()),
        active.numel(),
        _NO_SEGMENTS if segments is None else [x.data_ptr() for x in segments.tensors],
        alpha_clip,
        lambda_mix,
        _WEIGHT_FNS[weight_fn],
        _STEP_NORMS[step_norm],
        planes.data_ptr(),
        statistics.data_ptr(),
    )
    return planes, statistics


def step_segments(step_ids: Tensor, trajectory_ids: Tensor) -> StepSegments:
    """Tokens sorted by trajectory and step, from (M,) int64 ids; negative step ids mean in no step.

    Linear in M where the steps of each trajectory come in order, and almost so where they do not.
    """
    tokens = step_ids.numel()
    step_ids, trajectory_ids = step_ids.contiguous(), trajectory_ids.contiguous()
    empty = step_ids.new_empty
    tables = (empty(tokens), empty(tokens + 1), empty(tokens + 1), empty(2))
    out = [x.data_ptr() for x in tables]
    _module().step_segments(step_ids.data_ptr(), trajectory_ids.data_ptr(), tokens, out)
    return StepSegments(*tables)


def read_loops() -> list[str]:
    """What the loops of ``read_probe`` do: streams side by side, and how early they ask for a line."""
    names: list[str] = _module().read_loops()
    return names


def read_probe(memory: Tensor, threads: int | None = None, *, loop: int = 0) -> int:
    """Read a contiguous tensor once and do nothing with it: the fastest of the loops limits any kernel, for benchmarks.

    Runs on the threads and with the instruction set of ``score_rows``. Returns a number of no meaning.

    Args:
        memory: Any contiguous tensor.
        threads: CPU threads; torch's own choice where not given.
        loop: Index into ``read_loops()``.

    Raises:
        ValueError: There is no such loop.
    """
    loops = len(read_loops())
    if not 0 <= loop < loops:
        raise ValueError(f"loop must lie in [0, {loops}), got {loop}")
    count = torch.get_num_threads() if threads is None else threads
    number: int = _module().read_probe(memory.data_ptr(), memory.numel() * memory.element_size(), loop, count)
    return number


def powers_of_two(exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """2^x of (n,) float32 as the row kernels compute it for logits of ``dtype``; n a multiple of 64. For tests."""
    out = torch.empty_like(exponents)
    _module().powers(_DTYPES[dtype], exponents.data_ptr(), out.data_ptr(), exponents.numel())
    return out
