"""The ops on (N, T) token values on this machine, beside their eager PyTorch forms.

    pytest benchmarks/bench_token_ops.py --benchmark-columns=min,median,rounds
    python -m benchmarks.bench_token_ops          # the table of benchmarks/results, contenders in turn

Each result is compared with the float64 PyTorch form before anything is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stepopsd.ops import dispatch
from stepopsd.ops.future_value import HALF_LIFE_32, future_branching
from stepopsd.ops.oar_reshape import oar_reshape
from stepopsd.ops.torch_tokens import branching

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = "triton" if DEVICE == "cuda" else "cpu"
SHAPES = [(64, 512), (64, 2048), (64, 8192), (256, 2048)]
Tensors = dict[str, Tensor]


def make(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensors:
    rng = torch.Generator().manual_seed(0)
    new = -torch.rand(shape, generator=rng) * 3
    values = {
        "scores": torch.rand(shape, generator=rng) ** 4 * 1e-3,
        "new": new,
        "old": new - 0.03 * torch.randn(shape, generator=rng),
        "entropies": torch.rand(shape, generator=rng) * 3,
    }
    mask = torch.rand(shape, generator=rng) < 0.9
    return {name: x.to(DEVICE, dtype) for name, x in values.items()} | {"mask": mask.to(DEVICE)}


def reshape(x: Tensors, backend: str) -> Tensor:
    return oar_reshape(x["scores"], x["mask"], backend=backend)


def branch(x: Tensors, backend: str) -> Tensor:
    result = future_branching(x["new"], x["old"], x["entropies"], x["mask"], backend=backend)
    return torch.stack((result.future, result.scores.nan_to_num(neginf=0.0)))


def branch_by_matrix(x: Tensors) -> Tensor:
    """The sums as a product with the whole (T, T) decay matrix."""
    gap = (x["new"] - x["old"]).where(x["mask"], 0)
    lag = torch.arange(gap.shape[1], device=gap.device)
    lag = lag[:, None] - lag
    sums = gap @ torch.where(lag >= 0, HALF_LIFE_32 ** lag.clamp(min=0).to(gap.dtype), 0)
    future = sums.exp().clamp(1.0, 1.2).where(x["mask"], 1)
    scores = branching(sums.exp().clamp(0.8, 1.2), x["entropies"], x["mask"], True, 1e-6)
    return torch.stack((future, scores.nan_to_num(neginf=0.0)))


CONTENDERS: dict[str, dict[str, Callable[[Tensors], Tensor]]] = {
    "oar_reshape": {"kernel": lambda x: reshape(x, FUSED), "eager": lambda x: reshape(x, "torch")},
    "future_branching": {
        "kernel": lambda x: branch(x, FUSED),
        "eager": lambda x: branch(x, "torch"),
        "eager, whole matrix": branch_by_matrix,
    },
}


def verify(op: str, name: str, shape: tuple[int, int]) -> None:
    """Raise unless the contender agrees with float64; candidates on the gate's edge may fall on either side."""
    want, got = CONTENDERS[op]["eager"](make(shape, torch.float64)), CONTENDERS[op][name](make(shape))
    wrong = ((got.double() - want).abs() > 1e-3 * (1 + want.abs())).double().mean()
    if float(wrong) > 1e-4:
        raise AssertionError(f"{name} of {op} {shape} differs from float64 in {float(wrong):.2%} of its values")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("op", "name"), [(op, name) for op, names in CONTENDERS.items() for name in names])
def test_token_op(benchmark: Any, op: str, name: str, shape: tuple[int, int]) -> None:
    if dispatch.unavailable(FUSED, DEVICE) is not None or dispatch.lacks(FUSED, "oar_rows") is not None:
        pytest.skip(f"the {FUSED} backend lacks the kernel")
    verify(op, name, shape)
    x = make(shape)
    benchmark.group = f"{DEVICE} {op} {shape[0]} x {shape[1]}"

    def call() -> None:
        CONTENDERS[op][name](x)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=7, warmup_rounds=2)


def main(rounds: int = 15) -> None:
    """Print least CPU times of interleaved calls on one thread, and their ratios to the kernel."""
    if DEVICE != "cpu":
        raise SystemExit("the table is that of a CPU; use pytest on a GPU")
    torch.set_num_threads(1)
    print("| op | N x T | kernel, ms | eager, ms | ratio | eager, whole matrix, ms | ratio |")
    print("|:--|--:|--:|--:|--:|--:|--:|")
    for op, contenders in CONTENDERS.items():
        for shape in SHAPES:
            x, least = make(shape), dict.fromkeys(contenders, float("inf"))
            for name in contenders:
                verify(op, name, shape)
            for _ in range(rounds):
                for name, run in contenders.items():
                    start = time.process_time()
                    run(x)
                    least[name] = min(least[name], time.process_time() - start)
            base, cells = least["kernel"], [f"{least['kernel'] * 1e3:.2f}"]
            for name in ("eager", "eager, whole matrix"):
                seconds = least.get(name)
                cells += ["", ""] if seconds is None else [f"{seconds * 1e3:.2f}", f"{seconds / base:.1f}"]
            print(f"| `{op}` | {shape[0]} x {shape[1]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
