"""What a call costs besides reading logits: launches, the shaping, the sort of the steps, the public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stepopsd.experiments.bench.contenders import shaping
from stepopsd.experiments.bench.timing import (
    Call,
    Clock,
    CpuClock,
    CudaClock,
    Settings,
    captured,
    host_seconds,
    interleaved,
    typical,
)
from stepopsd.ops import dispatch
from stepopsd.ops.shaping import shape_advantages, step_segments

TOKENS = (1, 8192, 65536)
VOCAB = 64  # so short that a row costs nothing; it is the call that is timed
STEP_LENGTH = 32
STEPS_PER_TRAJECTORY = 8
SHORT = Settings(rounds=7, sample_seconds=0.005, seconds=3.0)


def overheads(device: str) -> list[dict[str, Any]]:
    """Seconds of each stage, per backend and number of tokens.

    Returns:
        Records with ``backend``, ``tokens``, ``stage``, ``seconds`` (of calls back to back) and on a GPU also
        ``replay_seconds`` (without launching) and ``host_seconds`` (of the host alone); None where not to be had.
    """
    records = []
    for backend in dispatch.BACKENDS:
        if dispatch.unavailable(backend, device) is not None or not _compiled(backend, device):
            continue
        for tokens in TOKENS:
            stages = _stages(backend, device, tokens)
            for stage, seconds in _timed(stages, device).items():
                records.append({"backend": backend, "tokens": tokens, "stage": stage, **seconds})
    return records


def _compiled(backend: str, device: str) -> bool:
    return not (backend == "triton" and device == "cpu")  # interpreted: no time of that means anything


def _stages(backend: str, device: str, tokens: int) -> dict[str, Call]:
    rng = torch.Generator(device).manual_seed(0)
    logits = torch.randn((1, tokens, VOCAB), device=device, generator=rng)
    ids = torch.randint(VOCAB, (1, tokens), device=device, generator=rng)
    advantages = torch.randn((1, tokens), device=device, generator=rng)
    active = torch.ones((1, tokens), dtype=torch.bool, device=device)
    place = torch.arange(tokens, device=device).view(1, tokens)
    steps = (place // STEP_LENGTH).remainder(STEPS_PER_TRAJECTORY)
    trajectories = place // (STEP_LENGTH * STEPS_PER_TRAJECTORY)
    kernels, segments = dispatch.load(backend), step_segments(steps, trajectories)
    logprobs: Tensor = kernels.score_rows([logits], ids, active, temperature=1.0, entropy=False)[0, 0].view(-1)
    flat = (logprobs, logprobs - 0.1, advantages.view(-1), active.view(-1))
    budget = {**shaping(), "step_norm": "equal_step_mean_abs"}
    return {
        "score": lambda _: kernels.score_rows([logits, logits], ids, active, temperature=1.0, entropy=False),
        "shape": lambda _: kernels.shape_rows(*flat, None, **shaping()),
        "shape with step budget": lambda _: kernels.shape_rows(*flat, segments, **budget),
        "step_segments": lambda _: step_segments(steps, trajectories),
        "shape_advantages, segments given": lambda _: shape_advantages(
            logits, logits, ids, advantages, steps, segments=segments, backend=backend
        ),
        "shape_advantages": lambda _: shape_advantages(
            logits, logits, ids, advantages, steps, trajectory_ids=trajectories, backend=backend
        ),
    }


def _timed(stages: dict[str, Call], device: str) -> dict[str, dict[str, float | None]]:
    for call in stages.values():
        call(0)
        call(0)
    clock: Clock = CudaClock() if device == "cuda" else CpuClock()
    found: dict[str, dict[str, float | None]] = {}
    for stage, samples in interleaved(clock, stages, SHORT).items():
        found[stage] = {"seconds": typical(samples.summary(), device, torch.get_num_threads())}
    if device == "cuda":
        for stage, call in stages.items():
            found[stage]["host_seconds"] = host_seconds(call)
            found[stage]["replay_seconds"] = _replayed(call)
    return found


def _replayed(call: Call) -> float | None:
    length = 8
    try:
        replay = captured(call, length)
    except Exception:  # a call that waits for the device cannot be captured
        torch.cuda.synchronize()
        return None
    replay(0)
    return interleaved(CudaClock(), {"": replay}, SHORT)[""].summary()["median"] / length
