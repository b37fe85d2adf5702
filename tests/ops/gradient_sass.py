"""Compile the gradient kernels without a GPU and read their machine code.

`python -m tests.ops.gradient_sass` prints JSON: what each variant issues, and when a launch compiles.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stepopsd.ops.triton import gradient, gradient_kernels
from tests.ops.jit import AbsentDevice, compile_only
from tests.ops.sass import POINTERS as SIZES
from tests.ops.sass import disassemble, hot_loops, instructions, resources

POINTERS = {"ids": "*i64", "active": "*u8", "temperatures": "*fp32", "normaliser": "*fp32", "coefficients": "*fp32",
            "factor": "*fp32", "temperature": "fp32"}  # fmt: skip
ROWS = ("logits", "out", "values")
NARROW_INTEGERS = ("rows", "inner", "vocab", "splits", "chunk")


def compile_kernel(name: str, target: GPUTarget, dtype: str, *, per_row: bool = False, **constants: Any) -> Any:
    """Compile with the launch shape of the launcher."""
    kernel = getattr(gradient_kernels, name)
    constants |= {"WIDTH": gradient.VECTOR_BYTES // SIZES[dtype], "BLOCKS": gradient.THREADS * gradient.GROUPS}
    if name == "gradient_kernel" and not per_row:
        constants["temperatures"] = None
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in ROWS:
            signature[argument] = f"*{dtype}"
        else:
            signature[argument] = POINTERS.get(argument, "i32" if argument in NARROW_INTEGERS else "i64")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": gradient.THREADS // target.warp_size, **gradient.OPTIONS}
    return triton.compile(source, target=target, options=options)


def inspect(name: str, capability: int, dtype: str, **variant: bool) -> dict[str, Any]:
    """Registers, stack, and what the kernel and each loop with exponentials issue, for sm_<capability>."""
    cubin = compile_kernel(name, GPUTarget("cuda", capability, 32), dtype, **variant).asm["cubin"]
    listing = instructions(disassemble(cubin))
    registers, stack = resources(cubin)
    return {
        "target": f"sm_{capability}",
        "dtype": dtype,
        **variant,
        "registers": registers,
        "stack": stack,
        "whole": Counter(code for code, _ in listing),
        "loops": [Counter(body) for body in hot_loops(listing)],
    }


def inspect_amd(name: str, dtype: str, **variant: bool) -> dict[str, Any]:
    """Registers and scratch that the assembly for gfx942 declares, and its accesses of global memory."""
    assembly = compile_kernel(name, GPUTarget("hip", "gfx942", 64), dtype, **variant).asm["amdgcn"]
    declared = {word: re.search(rf"; {word}: (\d+)", assembly) for word in ("ScratchSize", "NumVgprs")}
    accesses = Counter(re.findall(r"(?:buffer|global)_((?:load|store)_\w+)", assembly))
    return {**variant, **{word: int(found[1]) for word, found in declared.items() if found}, "accesses": accesses}


def differentiate(shape: tuple[int, int, int], *, lead: int = 0, out_lead: int = 0, far: int = 0,
                  temperature: float | torch.Tensor = 1.0) -> None:  # fmt: skip
    """Launch on rows of bf16 zeros, ``lead`` elements off a boundary and ``far`` apart if that is not 0."""
    strides = (far, far, 1) if far else (shape[1] * shape[2], shape[2], 1)
    size = shape[2] if far else shape[0] * shape[1] * shape[2]
    # Nothing is read or written, so far rows need no memory.
    logits, out = (
        torch.zeros(size + skip, dtype=torch.bfloat16)[skip:].as_strided(shape, strides) for skip in (lead, out_lead)
    )
    ids, planes = torch.zeros(shape[:2], dtype=torch.int64), torch.zeros(3, *shape[:2])
    gradient.gradient_rows(logits, ids, ids == 0, planes[1:], planes, temperature=temperature, out=out)


def scale(shape: tuple[int, int, int], lead: int = 0) -> None:
    size = shape[0] * shape[1] * shape[2]
    gradient.scale_rows(torch.zeros(size + lead, dtype=torch.bfloat16)[lead:].view(shape), torch.ones(()))


def binaries() -> dict[str, list[int]]:
    """Binaries of both kernels after calls that need no new one, and after some that do."""
    triton.runtime.driver.set_active(AbsentDevice(GPUTarget("cuda", 90, 32)))
    kernels = compile_only(gradient_kernels, "gradient_kernel", "scale_kernel")
    calls: dict[str, Callable[[], None]] = {
        "gradient": lambda: differentiate((1, 3, 32_768)),
        "one row": lambda: differentiate((1, 1, 1024)),
        "odd rows": lambda: differentiate((17, 5, 50_257)),
        "tiny": lambda: differentiate((1, 16, 1)),
        "moved alike": lambda: differentiate((2, 4, 1024), lead=3, out_lead=3),
        "temperature": lambda: differentiate((1, 4, 1024), temperature=0.5),
        "far rows": lambda: differentiate((1, 1, 1024), far=2**33),
        "moved apart": lambda: differentiate((2, 4, 1024), lead=3),
        "moved apart otherwise": lambda: differentiate((16, 1, 513), out_lead=1),
        "own temperatures": lambda: differentiate((1, 2, 1024), temperature=torch.ones(1, 2)),
        "scale": lambda: scale((1, 3, 32_768)),
        "scale one": lambda: scale((1, 1, 1)),
        "scale moved": lambda: scale((5, 16, 50_257), lead=1),
    }
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = [kernel.binaries for kernel in kernels]
    return counts


def report() -> dict[str, Any]:
    matched, apart = {"MATCHED": True}, {"MATCHED": False}
    cases: list[tuple[int, str, dict[str, bool]]] = [
        *((chip, dtype, matched) for chip in (80, 90, 100) for dtype in SIZES),
        *((chip, "bf16", apart) for chip in (80, 90, 100)),
        (90, "fp16", apart),
        (90, "fp32", apart),
        (90, "bf16", {**matched, "per_row": True}),
    ]
    return {
        "gradient": [inspect("gradient_kernel", chip, dtype, **flags) for chip, dtype, flags in cases],
        "scale": [inspect("scale_kernel", chip, dtype) for chip, dtype in ((80, "bf16"), (90, "fp16"), (100, "fp32"))],
        "amd": [inspect_amd("gradient_kernel", "bf16", **flags) for flags in (matched, apart)],
        "amd_scale": inspect_amd("scale_kernel", "bf16"),
        "binaries": binaries(),
    }


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("unset TRITON_INTERPRET: interpreted kernels have no machine code")
    print(json.dumps(report()))
