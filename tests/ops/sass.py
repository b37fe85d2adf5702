"""Compile the score kernels without a GPU and read what their machine code does per logit.

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

from stepopsd.ops.triton.score import BLOCK, OPTIONS
from stepopsd.ops.triton.score_kernels import merge_kernel, score_kernel
from stepopsd.ops.triton.table import TABLE, Launch

POINTERS = {"bf16": 2, "fp16": 2, "fp32": 4}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
LABEL = re.compile(r"^(\.L_x_\d+):")


@dataclass(frozen=True)
class Loop:
    """What one trip of one loop over the logits issues; the rates are per logit."""

    per_logit: float
    exponentials: float
    groups: int  # 16-byte groups of logits that a thread adds in one trip
    loads: int
    wide_loads: int  # of 16 bytes
    meetings: int  # barriers, shuffles
    spills: int


@dataclass(frozen=True)
class Report:
    """What the machine code of one compiled score kernel does."""

    target: str
    variant: str
    registers: int
    stack: int
    spills: int  # loads from and stores to the stack, outside the loops too
    main: list[Loop]  # one for each shift of a row against the 16-byte blocks
    rest: list[Loop]  # up to the trip of one group per thread that the main loop leaves


def launch_for(target: GPUTarget) -> Launch:
    return TABLE[f"cuda:{target.arch}" if target.backend == "cuda" else "hip"]


def compile_score(target: GPUTarget, dtype: str = "bf16", *, shifted: bool = False, entropy: bool = False,
                  per_row: bool = False, launch: Launch | None = None):  # fmt: skip
    """Compile the score kernel for a target with the launch shape of its row of the table."""
    launch, width = launch or launch_for(target), 16 // POINTERS[dtype]
    constants = {
        "WIDTH": width, "SHIFTED": shifted, "THREADS": launch.threads, "GROUPS": launch.groups, "ENTROPY": entropy,
        "POLYNOMIAL": launch.polynomial if width == 8 else 0,
    }  # fmt: skip
    return _compile(score_kernel, target, dtype, constants, per_row, launch.num_warps)


def compile_merge(target: GPUTarget, *, entropy: bool = False, per_row: bool = False):
    constants = {"BLOCK": BLOCK, "ENTROPY": entropy}
    return _compile(merge_kernel, target, "bf16", constants, per_row, 4)


def _compile(kernel, target: GPUTarget, dtype: str, constants: dict, per_row: bool, num_warps: int):
    constants = constants if per_row else {**constants, "temperatures": None}
    pointers = {"first": dtype, "second": dtype, "ids": "i64", "active": "u8", "temperatures": "fp32", "out": "fp32",
                "partial": "fp32"}  # fmt: skip
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = f"*{pointers[name]}"
        elif name == "scale":
            signature[name] = "fp32"
        else:
            signature[name] = "i64" if name.startswith(("first_", "second_")) else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=target, options={"num_warps": num_warps, **OPTIONS})


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


def hot_loops(listing: list[tuple[str, str]]) -> list[list[str]]:
    """The opcodes of every backward branch's body that computes exponentials."""
    position = {name: index for index, (kind, name) in enumerate(listing) if kind == "label"}
    bodies = []
    for index, (opcode, operands) in enumerate(listing):
        target = re.search(r"\.L_x_\d+", operands)
        if opcode.startswith("BRA") and target and position.get(target[0], index) < index:
            body = [code for code, _ in listing[position[target[0]] : index + 1] if code != "label"]
            if any(code.startswith("MUFU.EX2") for code in body):
                bodies.append(body)
    return bodies


def read_loop(body: list[str], width: int, groups: int, polynomial: int) -> Loop | None:
    """Rates of a loop whose trip is ``groups`` groups, or that unrolled; None if it does not look like such a loop."""
    count = Counter(code.split(".")[0] for code in body)
    per_trip = 1 + groups * (width - polynomial)
    if count["MUFU"] % per_trip:
        return None
    trips = count["MUFU"] // per_trip
    logits = trips * groups * width
    loads = [code for code in body if code.startswith("LDG")]
    return Loop(
        per_logit=round(len(body) / logits, 2),
        exponentials=round(count["MUFU"] / logits, 3),
        groups=trips * groups,
        loads=len(loads),
        wide_loads=sum(".128" in code for code in loads),
        meetings=count["BAR"] + count["WARPSYNC"] + count["SHFL"],
        spills=count["LDL"] + count["STL"],
    )


def inspect(capability: int, dtype: str = "bf16", *, shifted: bool = False, entropy: bool = False,
            per_row: bool = False, launch: Launch | None = None) -> Report:  # fmt: skip
    """Compile for sm_<capability> and count what the loops issue per logit."""
    target = GPUTarget("cuda", capability, 32)
    launch = launch or launch_for(target)
    compiled = compile_score(target, dtype, shifted=shifted, entropy=entropy, per_row=per_row, launch=launch)
    cubin = compiled.asm["cubin"]
    listing = instructions(disassemble(cubin))
    registers, stack = resources(cubin)
    width = 16 // POINTERS[dtype]
    main, rest = [], []
    for body in hot_loops(listing):
        for groups, loops in ((launch.groups, main), (1, rest)):
            loop = read_loop(body, width, groups, launch.polynomial if width == 8 else 0)
            if loop is not None:
                loops.append(loop)
                break
        else:
            raise AssertionError(f"a loop that is none of the kernel's: {Counter(body)}")
    flags = {"shifted": shifted, "entropy": entropy, "per-row": per_row}
    return Report(
        target=f"sm_{capability}",
        variant=" ".join([dtype, *(name for name, flag in flags.items() if flag)]),
        registers=registers,
        stack=stack,
        spills=_spills(listing),
        main=main,
        rest=rest,
    )


def inspect_merge(capability: int, **flags: bool) -> dict[str, int]:
    """Compile the merge kernel for sm_<capability> and count what makes threads wait."""
    cubin = compile_merge(GPUTarget("cuda", capability, 32), **flags).asm["cubin"]
    listing = instructions(disassemble(cubin))
    registers, stack = resources(cubin)
    meetings = sum(code.startswith(("BAR", "SHFL")) for code, _ in listing)
    return {"registers": registers, "stack": stack, "spills": _spills(listing), "meetings": meetings}


def _spills(listing: list[tuple[str, str]]) -> int:
    return sum(code.startswith(("LDL", "STL")) for code, _ in listing)


def inspect_amd(**flags: bool) -> dict[str, int]:
    """Compile for gfx942 and read the counts that its assembly declares."""
    target = GPUTarget("hip", "gfx942", 64)
    assembly = compile_score(target, **flags).asm["amdgcn"]
    merge = compile_merge(target, **{name: flags[name] for name in flags if name != "shifted"}).asm["amdgcn"]
    scratch = [int(re.search(r"; ScratchSize: (\d+)", text)[1]) for text in (assembly, merge)]
    return {
        "scratch": max(scratch),
        "registers": int(re.search(r"; NumVgprs: (\d+)", assembly)[1]),
        "wide_loads": len(re.findall(r"(?:buffer|global)_load_dwordx4", assembly)),
    }


FLAGS = [{}, {"shifted": True}, {"entropy": True}, {"shifted": True, "entropy": True}]
CHECKED = [
    *({"capability": 90, **flags} for flags in FLAGS),
    *({"capability": chip, **flags} for chip in (80, 100) for flags in (FLAGS[0], FLAGS[3])),
    {"capability": 90, "dtype": "fp16", "shifted": True},
    {"capability": 90, "dtype": "fp32", "shifted": True, "entropy": True},
    {"capability": 90, "entropy": True, "per_row": True},
]


def report() -> dict[str, list]:
    return {
        "nvidia": [asdict(inspect(**case)) for case in CHECKED],
        "merge": [inspect_merge(chip, entropy=True, per_row=chip == 90) for chip in (80, 90, 100)],
        "amd": [inspect_amd(**flags) for flags in ({}, {"shifted": True, "entropy": True})],
    }


def main() -> None:
    if sys.argv[1:] == ["--json"]:
        print(json.dumps(report()))
        return
    print(f"triton {triton.__version__}: worst loop of each kind")
    names = [field.name for field in fields(Report)[:5]]
    print(*names, "instructions", "exponentials", "rest: instructions", "exponentials", "loops", sep=" | ")
    for capability in (80, 90, 100):
        for dtype in POINTERS:
            for flags in FLAGS:
                found = inspect(capability, dtype, **flags)
                worst = [f(getattr(loop, name) for loop in loops) for loops in (found.main, found.rest)
                         for f, name in ((max, "per_logit"), (max, "exponentials"))]  # fmt: skip
                print(*(getattr(found, name) for name in names), *worst, len(found.main), sep=" | ", flush=True)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("unset TRITON_INTERPRET: interpreted kernels have no machine code")
    main()
