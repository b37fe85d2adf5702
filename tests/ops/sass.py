"""Compile the pair kernel without a GPU and read what its machine code does per logit.

`python -m tests.ops.sass` prints the table of benchmarks/results/README.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stepopsd.ops.triton.kernels import pair_kernel
from stepopsd.ops.triton.table import TABLE, Launch

POINTERS = {"bf16": 2, "fp16": 2, "fp32": 4}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
LABEL = re.compile(r"^(\.L_x_\d+):")


@dataclass(frozen=True)
class Report:
    """What the machine code of one compiled kernel does; the rates are per logit of the hot loop."""

    target: str
    variant: str
    registers: int
    stack: int
    spills: int  # loads from and stores to the stack, outside the loop too
    per_logit: float
    exponentials: float
    wide_loads: int
    narrow_loads: int
    barriers: int
    shuffles: int


def compile_pair(target: GPUTarget, dtype: str = "bf16", *, shifted: bool = False, entropy: bool = False,
                 launch: Launch | None = None):  # fmt: skip
    """Compile the pair kernel for a target with the launch shape of its row of the table."""
    launch = launch or TABLE[f"cuda:{target.arch}" if target.backend == "cuda" else "hip"]
    vec = 16 // POINTERS[dtype]
    constants = {
        "THREADS": launch.threads, "STUDENT_VEC": vec, "TEACHER_VEC": vec, "STUDENT_SHIFTED": shifted,
        "TEACHER_SHIFTED": shifted, "EXPONENTIAL": False, "ENTROPY": entropy, "UNROLL": launch.unroll(POINTERS[dtype]),
    }  # fmt: skip
    pointers = {"student": dtype, "teacher": dtype, "ids": "i64", "advantages": "fp32", "active": "u8", "out": "fp32"}
    signature = {}
    for name in pair_kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = f"*{pointers[name]}"
        else:
            signature[name] = "fp32" if name in ("scale", "low", "high", "mix") else "i32"
    source = ASTSource(fn=pair_kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=target, options={"num_warps": launch.num_warps})


def disassemble(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread, as the binary declares them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout + text.stderr)
    assert found, text.stdout + text.stderr
    return int(found[1]), int(found[2])


def instructions(sass: str) -> list[tuple[str, str]]:
    """(opcode, operands) in order, with a ("label", name) entry where a branch can land."""
    listing = []
    for line in sass.splitlines():
        if label := LABEL.match(line):
            listing.append(("label", label[1]))
        elif found := OPCODE.match(line):
            listing.append((found[1], found[2]))
    return listing


def hot_loop(listing: list[tuple[str, str]]) -> list[str]:
    """The opcodes of the backward branch's body that holds the most exponentials."""
    position = {name: index for index, (kind, name) in enumerate(listing) if kind == "label"}
    bodies = []
    for index, (opcode, operands) in enumerate(listing):
        target = re.search(r"\.L_x_\d+", operands)
        if opcode.startswith("BRA") and target and position.get(target[0], index) < index:
            bodies.append([code for code, _ in listing[position[target[0]] : index + 1] if code != "label"])
    return max(bodies, key=lambda body: sum(code.startswith("MUFU.EX2") for code in body), default=[])


def inspect(capability: int, dtype: str = "bf16", *, shifted: bool = False, entropy: bool = False,
            launch: Launch | None = None) -> Report:  # fmt: skip
    """Compile for sm_<capability> and count what one trip of the hot loop issues per logit."""
    compiled = compile_pair(GPUTarget("cuda", capability, 32), dtype, shifted=shifted, entropy=entropy, launch=launch)
    cubin = compiled.asm["cubin"]
    listing = instructions(disassemble(cubin))
    body = hot_loop(listing)
    registers, stack = resources(cubin)
    loads = [code for code in body if code.startswith("LDG")]
    wide = [code for code in loads if ".128" in code]
    vec = 16 // POINTERS[dtype]
    logits = len(wide) * vec / (2 if shifted else 1)
    count = Counter(code.split(".")[0] for code in body)
    return Report(
        target=f"sm_{capability}",
        variant=" ".join([dtype, *(["shifted"] if shifted else []), *(["entropy"] if entropy else [])]),
        registers=registers,
        stack=stack,
        spills=sum(code.startswith(("LDL", "STL")) for code, _ in listing),
        per_logit=round(len(body) / max(logits, 1), 2),
        exponentials=round(count["MUFU"] / max(logits, 1), 3),
        wide_loads=len(wide),
        narrow_loads=len(loads) - len(wide),
        barriers=count["BAR"] + count["WARPSYNC"],
        shuffles=count["SHFL"],
    )


def inspect_amd() -> dict[str, int]:
    """Compile for gfx942 and read the counts that its assembly declares."""
    assembly = compile_pair(GPUTarget("hip", "gfx942", 64)).asm["amdgcn"]
    return {
        "scratch": int(re.search(r"; ScratchSize: (\d+)", assembly)[1]),
        "wide_loads": len(re.findall(r"(?:buffer|global)_load_dwordx4", assembly)),
    }


CHECKED = [
    *({"capability": chip, **flags} for chip in (80, 90, 100) for flags in ({}, {"shifted": True}, {"entropy": True})),
    {"capability": 90, "shifted": True, "entropy": True},
    {"capability": 90, "dtype": "fp16"},
    {"capability": 90, "dtype": "fp32"},
]


def main() -> None:
    if sys.argv[1:] == ["--json"]:
        print(json.dumps({"nvidia": [asdict(inspect(**case)) for case in CHECKED], "amd": inspect_amd()}))
        return
    print(f"triton {triton.__version__}")
    print(" | ".join(field.name for field in fields(Report)))
    for capability in (80, 90, 100):
        for dtype in POINTERS:
            for shifted in (False, True):
                for entropy in (False, True):
                    report = inspect(capability, dtype, shifted=shifted, entropy=entropy)
                    print(*asdict(report).values(), sep=" | ", flush=True)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("unset TRITON_INTERPRET: interpreted kernels have no machine code")
    main()
