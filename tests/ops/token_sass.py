"""Compile the kernels on token values without a GPU and read their machine code: `python -m tests.ops.token_sass`."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stepopsd.ops.triton import future, oar
from stepopsd.ops.triton.future_kernels import future_kernel
from stepopsd.ops.triton.oar_kernels import oar_kernel
from tests.ops.sass import disassemble, instructions, resources

FLOATS = ("scores", "weights", "logprobs", "old_logprobs", "entropies", "future")
INTEGERS = ("width", "min_tokens")
# kernel, threads, constants; the last of each kind computes most
VARIANTS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "oar absolute": (oar_kernel, oar.THREADS, {"ABSOLUTE": True, "PRESERVE": False, "BLOCK": oar.BLOCK}),
    "oar": (oar_kernel, oar.THREADS, {"ABSOLUTE": False, "PRESERVE": True, "BLOCK": oar.BLOCK}),
    "future": (
        future_kernel,
        future.THREADS,
        {"VALID_DECAY": True, "SCORED": False, "GATE": True, "BLOCK": future.BLOCK, "entropies": None, "scores": None},
    ),
    "branching": (
        future_kernel,
        future.THREADS,
        {"VALID_DECAY": False, "SCORED": True, "GATE": True, "BLOCK": future.BLOCK},
    ),
}


def compile_variant(target: GPUTarget, variant: str) -> Any:
    """Compile with the constants and the number of threads of the launchers."""
    kernel, threads, constants = VARIANTS[variant]
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name == "mask":
            signature[name] = "*u8"
        else:
            signature[name] = "*fp32" if name in FLOATS else "i32" if name in INTEGERS else "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=target, options={"num_warps": threads // target.warp_size})


def inspect(capability: int, variant: str) -> dict[str, Any]:
    """Registers, stack, shared memory and opcodes for sm_<capability>."""
    compiled = compile_variant(GPUTarget("cuda", capability, 32), variant)
    opcodes = [code for code, _ in instructions(disassemble(compiled.asm["cubin"])) if code != "label"]
    registers, stack = resources(compiled.asm["cubin"])
    return {
        "target": f"sm_{capability}",
        "variant": variant,
        "registers": registers,
        "stack": stack,
        "shared": compiled.metadata.shared,
        "instructions": len(opcodes),
        "count": Counter(code.split(".")[0] for code in opcodes),
    }


def inspect_amd(variant: str) -> dict[str, Any]:
    """Scratch bytes and vector registers that the assembly for gfx942 declares."""
    assembly = compile_variant(GPUTarget("hip", "gfx942", 64), variant).asm["amdgcn"]
    found = {name: re.search(rf"; {name}: (\d+)", assembly) for name in ("ScratchSize", "NumVgprs")}
    return {"variant": variant, **{name: int(match[1]) for name, match in found.items() if match}}


def main() -> None:
    nvidia = [inspect(90, variant) for variant in VARIANTS]
    nvidia += [inspect(chip, variant) for chip in (80, 100) for variant in ("oar", "branching")]
    print(json.dumps({"nvidia": nvidia, "amd": [inspect_amd(variant) for variant in ("oar", "branching")]}))


if __name__ == "__main__":
    main()
