"""What a call of ``shape_advantages`` costs the host beyond its kernels: ``python -m benchmarks.host_time``.

Stand-ins that return ready tensors take the place of the kernels: checks, views and the result are what is left. It
needs no GPU, as this code does not depend on the device. The comparison that makes the mask of steps is a kernel too:
its time is given apart.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import torch

from stepopsd.ops import dispatch
from stepopsd.ops.results import STATISTICS
from stepopsd.ops.shaping import shape_advantages, step_segments

GROUPS, TOKENS, VOCAB = 8, 64, 64
CALLS, REPETITIONS = 2000, 15


def main() -> None:
    torch.set_num_threads(1)
    steps = torch.arange(TOKENS).div(8, rounding_mode="floor").expand(GROUPS, TOKENS).contiguous()
    mask = _microseconds(lambda: steps >= 0)
    print(f"the mask of steps alone: {mask:.1f} µs, left out of the figures below")
    load = {name: _stand_ins() for name in dispatch.BACKENDS}.__getitem__
    with mock.patch.object(dispatch, "load", load):
        for name, call in _calls(steps).items():
            print(f"{name}: {_microseconds(call) - mask:.1f} µs")


def _calls(steps: torch.Tensor) -> dict[str, Callable[[], object]]:
    logits, ids = torch.zeros(GROUPS, TOKENS, VOCAB), torch.zeros(GROUPS, TOKENS, dtype=torch.int64)
    values, trajectories = torch.zeros(GROUPS, TOKENS), torch.arange(GROUPS)
    segments = step_segments(steps, trajectories)
    flat = [x.flatten(0, 1) for x in (logits, ids, values, steps)]
    ready = {"student_logprobs": values, "teacher_logprobs": values}
    return {
        "logits (B, T, V)": lambda: shape_advantages(logits, logits, ids, values, steps, segments=segments),
        "logits (N, V)": lambda: shape_advantages(flat[0], flat[0], *flat[1:], segments=segments),
        "ready log-probs": lambda: shape_advantages(None, None, None, values, steps, segments=segments, **ready),
    }


def _stand_ins() -> SimpleNamespace:
    tokens = GROUPS * TOKENS
    shapes = ((GROUPS, TOKENS), (tokens,))
    scores, planes = ({rows: torch.zeros(*lead, *rows) for rows in shapes} for lead in ((2, 3), (4,)))
    statistics = torch.zeros(len(STATISTICS), dtype=torch.float64)
    return SimpleNamespace(
        score_rows=lambda logits, ids, active, **_: scores[tuple(ids.shape)],
        shape_rows=lambda student, teacher, advantages, active, segments, **_: (
            planes[tuple(active.shape)],
            statistics,
        ),
    )


def _microseconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=CALLS, repeat=REPETITIONS)) / CALLS * 1e6


if __name__ == "__main__":
    main()
