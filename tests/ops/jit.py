"""The launchers through Triton's own compiler, for a chip that is not there: all that a launch does but the launch.

`python -m tests.ops.jit` prints how many binaries each kernel has after each call.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from stepopsd.ops.segments import sort_steps
from stepopsd.ops.triton import score_kernels, score_rows, shape_kernels, shape_rows
from stepopsd.ops.triton.table import Launch


class AbsentDevice(DriverBase):
    """What the compiler asks of a device before it launches."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    @staticmethod
    def is_active() -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> None:
        return None


class Compiled:
    """A kernel whose launches end when the binary is there."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *args, **options: self.kernel.run(*args, grid=grid, warmup=True, **options)

    @property
    def binaries(self) -> int:
        return len(self.kernel.device_caches[0][0])


def compile_only(module: ModuleType, *names: str) -> list[Compiled]:
    """Put stand-ins in place of a module's kernels."""
    stand_ins = [Compiled(getattr(module, name)) for name in names]
    for name, stand_in in zip(names, stand_ins, strict=True):
        setattr(module, name, stand_in)
    return stand_ins


def score(shape: tuple[int, int, int], tensors: int = 1, lead: int = 0, stride: int = 0, **options: Any) -> None:
    """Score rows of zeros, ``lead`` elements off a boundary and ``stride`` apart if that is not 0."""
    vocab = shape[2]
    size = lead + (vocab if stride else shape[0] * shape[1] * vocab)
    memory = [torch.zeros(size, dtype=torch.bfloat16)[lead:] for _ in range(tensors)]
    # Nothing is read, so far rows need no memory.
    logits = [torch.as_strided(x, shape, (stride, stride, 1)) if stride else x.view(shape) for x in memory]
    options = {"temperature": 1.0, "entropy": False, **options}
    ids = torch.zeros(shape[:2], dtype=torch.int64)
    score_rows(logits, ids, ids == 0, launch=Launch(), **options)


def score_binaries() -> dict[str, list[int]]:
    """Binaries of the row kernel and the merge kernel after calls that need no new one, and after some that do."""
    kernels = compile_only(score_kernels, "score_kernel", "merge_kernel")
    own = torch.ones(1, 2)
    calls: dict[str, Callable[[], None]] = {
        "first": lambda: score((1, 3, 32_768), tensors=2),
        "fewer splits": lambda: score((1, 1, 1024)),
        "more rows": lambda: score((17, 1, 32_000), tensors=2),
        "more splits": lambda: score((2, 2, 151_936), tensors=2),
        "tiny": lambda: score((1, 16, 8)),
        "aligned view": lambda: score((2, 4, 1024), lead=8),
        "temperature": lambda: score((1, 4, 1024), temperature=0.5),
        "normaliser": lambda: score((1, 4, 1024), normaliser=True),
        "far rows": lambda: score((1, 1, 1024), stride=2**33),
        "shifted": lambda: score((2, 4, 1024), lead=1),
        "odd vocabulary": lambda: score((2, 4, 50_257), tensors=2),
        "entropy": lambda: score((1, 2, 1024), entropy=True),
        "own temperatures": lambda: score((1, 2, 1024), temperature=own),
    }
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = [kernel.binaries for kernel in kernels]
    return counts


def shape_binaries() -> int:
    """Binaries of the shape kernel after a call."""
    (kernel,) = compile_only(shape_kernels, "shape_kernel")
    values, zeros = torch.zeros(100), torch.zeros(100, dtype=torch.int64)
    shape_rows(values, values, values, values == 0, sort_steps(zeros, zeros), alpha_clip=0.2, lambda_mix=0.2,
               weight_fn="sigmoid", step_norm="equal_step_mean_abs")  # fmt: skip
    return kernel.binaries


def main() -> None:
    triton.runtime.driver.set_active(AbsentDevice(GPUTarget("cuda", 90, 32)))
    print(json.dumps({"score": score_binaries(), "shape": shape_binaries()}))


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    main()
