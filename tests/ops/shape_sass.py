"""Compile the shape kernel without a GPU and read its machine code: `python -m tests.ops.shape_sass` prints JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stepopsd.ops.triton import shape
from stepopsd.ops.triton.shape_kernels import shape_kernel
from tests.ops.sass import disassemble, instructions, resources

POINTERS = {
    **dict.fromkeys(("student", "teacher", "advantages", "planes", "values"), "*fp32"),
    **dict.fromkeys(("order", "step_starts", "trajectory_starts", "counts"), "*i64"),
    **dict.fromkeys(("statistics", "records"), "*fp64"),
    "active": "*u8", "arrived": "*i32", "tokens": "i32", "low": "fp32", "high": "fp32", "mix": "fp32",
}  # fmt: skip
ABSENT_WITHOUT_BUDGET = ("order", "step_starts", "trajectory_starts", "counts", "values")


def compile_shape(target: GPUTarget, *, budget: bool, ratio: bool = False, exponential: bool = False) -> Any:
    """Compile with the constants and the number of threads of the launcher."""
    constants: dict[str, Any] = {
        "EXPONENTIAL": exponential, "BUDGET": budget, "RATIO": ratio, "STEPS": shape.STEPS, "TOKENS": shape.TOKENS,
        "BLOCK": shape.BLOCK, "LANES": shape.THREADS,
    }  # fmt: skip
    if not budget:
        constants.update(dict.fromkeys(ABSENT_WITHOUT_BUDGET))
    signature = {name: "constexpr" if name in constants else POINTERS[name] for name in shape_kernel.arg_names}
    source = ASTSource(fn=shape_kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=target, options={"num_warps": shape.THREADS // target.warp_size})


def inspect(capability: int, **variant: bool) -> dict[str, Any]:
    """Registers, stack, spills and the opcodes of memory order for sm_<capability>."""
    cubin = compile_shape(GPUTarget("cuda", capability, 32), **variant).asm["cubin"]
    opcodes = [code for code, _ in instructions(disassemble(cubin)) if code != "label"]
    registers, stack = resources(cubin)
    return {
        "target": f"sm_{capability}",
        **variant,
        "registers": registers,
        "stack": stack,
        "instructions": len(opcodes),
        "count": Counter(code.split(".")[0] for code in opcodes),
        "order": [code for code in opcodes if code.startswith(("BAR", "MEMBAR", "ATOM", "RED.", "CCTL"))],
    }


def inspect_amd(**variant: bool) -> dict[str, Any]:
    """Scratch bytes and vector registers that the assembly for gfx942 declares."""
    assembly = compile_shape(GPUTarget("hip", "gfx942", 64), **variant).asm["amdgcn"]
    found = {name: re.search(rf"; {name}: (\d+)", assembly) for name in ("ScratchSize", "NumVgprs")}
    return {**variant, **{name: int(match[1]) for name, match in found.items() if match}}


def main() -> None:
    nvidia = [inspect(chip, budget=budget) for chip in (80, 90, 100) for budget in (False, True)]
    nvidia += [inspect(90, budget=True, ratio=True, exponential=True)]
    print(json.dumps({"nvidia": nvidia, "amd": [inspect_amd(budget=budget) for budget in (False, True)]}))


if __name__ == "__main__":
    main()
