"""What the machine code of the CUDA kernels does per logit, read without a GPU.

The native module is built as setup.py builds it, and the machine code in it taken apart.
`python -m tests.ops.cuda_sass` prints the table of benchmarks/results/README.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from csrc import build_native
from tests.ops.sass import instructions

ARCHS = ("80", "90", "100")
DTYPES = {"F32": "fp32", "F16": "fp16", "Bf16": "bf16"}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
FUNCTION = re.compile(r"^\t\.section\t\.text\.([^,]+),", re.MULTILINE)
USAGE = re.compile(r"Function ([^:\s]+):\s+REG:(\d+) STACK:(\d+)")
Listing = list[tuple[str, str]]


@dataclass(frozen=True)
class Loop:
    """One hot loop: the rates are per logit, the loads are those of a thread in one trip."""

    shifted: bool  # for rows that start off a 16-byte boundary: each group of logits lies in two blocks
    groups: int  # 16 bytes of neighbouring logits
    per_logit: float
    exponentials: float
    loads: int
    wide_loads: int
    meetings: int  # barriers and shuffles
    local: int  # loads from and stores to the stack


@dataclass(frozen=True)
class Rewrite:
    """A loop of a kernel that writes rows; the rates are per element, the rest is that of one trip."""

    per_element: float
    exponentials: float
    loads: int
    wide_loads: int  # of 16 bytes
    shared_loads: int  # of 16 bytes, from shared memory
    stores: int
    wide_stores: int
    meetings: int


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel; a score kernel has a hot loop for each alignment of a row, a gradient kernel rewrites."""

    target: str
    name: str
    dtype: str
    entropy: bool
    registers: int
    stack: int
    local: int  # in the whole kernel
    part_loads: int  # of blocks of logits, in the whole kernel, that are not 16 bytes wide
    loops: list[Loop]
    rewrites: list[Rewrite]


def tool(name: str) -> str | None:
    """A disassembler: of the CUDA toolkit, else the one that Triton brings."""
    nvcc = build_native.find_nvcc()
    places = [Path(nvcc).parent, "/usr/local/cuda/bin"] if nvcc else []
    if triton := find_spec("triton"):
        places += [Path(folder, "backends/nvidia/bin") for folder in triton.submodule_search_locations or []]
    return next(filter(None, (shutil.which(str(Path(place, name))) for place in places)), None)


def missing() -> str | None:
    """Why the machine code cannot be read here, or None."""
    if build_native.find_nvcc() is None:
        return "nvcc is not installed"
    absent = [name for name in ("cuobjdump", "nvdisasm") if tool(name) is None]
    return f"neither the CUDA toolkit nor Triton has {', '.join(absent)}" if absent else None


def output(*command: object) -> str:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}: {run.stderr}"
    return run.stdout + run.stderr


def build(folder: Path) -> Path:
    """A native module with the CUDA kernels; what an installation has compiled already is linked again, no more."""
    toolkit = build_native.cuda_toolkit()
    assert isinstance(toolkit, build_native.Toolkit), toolkit
    assert toolkit.archs == list(ARCHS)
    module = folder / "_native.so"
    command = build_native.compiler()
    assert command is not None
    build_native.compile_and_link(command, module, toolkit)
    return module


def inner_loops(listing: Listing) -> Iterator[Listing]:
    """The bodies of backward branches that hold no other such body."""
    position = {name: index for index, (kind, name) in enumerate(listing) if kind == "label"}
    spans = []
    for index, (opcode, operands) in enumerate(listing):
        target = re.search(r"\.L_x_\d+", operands)
        if opcode.startswith("BRA") and target and position.get(target[0], index) < index:
            spans.append((position[target[0]], index))
    for start, end in spans:
        if not any(start <= a and b <= end for a, b in spans if (a, b) != (start, end)):
            yield [item for item in listing[start : end + 1] if item[0] != "label"]


def read_loop(body: Listing, vector: int) -> Loop | None:
    """None where the loop is not hot. What is hot loads at most twice for each `vector` logits, that is 16 bytes."""
    opcodes = [code for code, _ in body]
    loads = [code for code in opcodes if code.startswith("LDG")]
    count = Counter(code.split(".")[0] for code in opcodes)
    logits = sum(code.startswith("MUFU.EX2") for code in opcodes) // vector * vector
    if not 0 < len(loads) * vector <= 2 * logits:
        return None
    return Loop(
        shifted=len(loads) * vector > logits,
        groups=logits // vector,
        per_logit=round(len(body) / logits, 2),
        exponentials=round(count["MUFU"] / logits, 3),
        loads=len(loads),
        wide_loads=sum(".128" in code for code in loads),
        meetings=sum(count[name] for name in ("BAR", "SHFL", "WARPSYNC", "UCGABAR_ARV", "UCGABAR_WAIT")),
        local=count["LDL"] + count["STL"],
    )


def read_rewrite(body: Listing, vector: int) -> Rewrite | None:
    """None where the loop loads nothing, or neither stores nor computes."""
    opcodes = [code for code, _ in body]
    loads, shared, stores = ([code for code in opcodes if code.startswith(name)] for name in ("LDG", "LDS", "STG"))
    exponentials = sum(code.startswith("MUFU.EX2") for code in opcodes)
    elements = (len(stores) or exponentials // vector) * vector
    if not loads + shared or not elements:
        return None
    count = Counter(code.split(".")[0] for code in opcodes)
    return Rewrite(
        per_element=round(len(body) / elements, 2),
        exponentials=round(count["MUFU"] / elements, 3),
        loads=len(loads),
        wide_loads=sum(".128" in code for code in loads),
        shared_loads=sum(".128" in code for code in shared),
        stores=len(stores),
        wide_stores=sum(".128" in code for code in stores),
        meetings=sum(count[name] for name in ("BAR", "SHFL", "WARPSYNC", "UCGABAR_ARV", "UCGABAR_WAIT")),
    )


def read_kernel(target: str, name: str, usage: tuple[int, int], listing: Listing) -> Kernel:
    kind = re.search(r"score_kernel.*(F32|F16|Bf16)ELb([01])E", name)
    dtype = DTYPES[kind[1]] if kind else ""
    loops = [read_loop(body, 16 // BYTES[dtype]) for body in inner_loops(listing)] if kind else []
    writes = re.search(r"(?:gradient|scale|loss)_kernel.*(F32|F16|Bf16)", name)
    vector = 16 // BYTES[DTYPES[writes[1]]] if writes else 0
    rewrites = [read_rewrite(body, vector) for body in inner_loops(listing)] if writes else []
    return Kernel(
        target=target, name=name, dtype=dtype, entropy=bool(kind and kind[2] == "1"),
        registers=usage[0], stack=usage[1], local=sum(code.startswith(("LDL", "STL")) for code, _ in listing),
        part_loads=sum(code.startswith(("LDG.E.EF", "LDG.E.NA")) and ".128" not in code for code, _ in listing),
        loops=sorted((loop for loop in loops if loop), key=lambda loop: (loop.shifted, loop.per_logit)),
        rewrites=sorted((loop for loop in rewrites if loop), key=lambda x: (x.loads > x.stores, x.per_element)),
    )  # fmt: skip


def read_kernels(module: Path, folder: Path) -> Iterator[Kernel]:
    """The kernels in a module's machine code; `folder` takes the pieces."""
    output("env", "-C", folder, tool("cuobjdump"), "-xelf", "all", module.resolve())
    for cubin in folder.glob("*.cubin"):
        target = cubin.name.split(".")[-2]
        used = USAGE.findall(output(tool("cuobjdump"), "-res-usage", cubin))
        usage = {name: (int(registers), int(stack)) for name, registers, stack in used}
        _, *parts = FUNCTION.split(output(tool("nvdisasm"), "-c", cubin))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            yield read_kernel(target, name, usage[name], instructions(text))


def inspect() -> list[Kernel]:
    """Build, take apart, read. A kernel that several files need is in the module more than once, and here once."""
    with tempfile.TemporaryDirectory() as folder:
        read = read_kernels(build(Path(folder)), Path(folder))
        kernels = list({(kernel.target, kernel.name): kernel for kernel in read}.values())
    return sorted(kernels, key=lambda kernel: (int(kernel.target[3:]), kernel.dtype, kernel.entropy, kernel.name))


def row(kernel: Kernel) -> str:
    """A line of the table; of the loops for shifted rows the slowest."""
    aligned, shifted = kernel.loops[0], kernel.loops[-1]
    cells = [
        kernel.target, kernel.dtype + " entropy" * kernel.entropy, kernel.registers, aligned.per_logit,
        shifted.per_logit, max(loop.exponentials for loop in kernel.loops), aligned.loads, shifted.loads,
    ]  # fmt: skip
    return " | ".join(["", *map(str, cells), ""]).strip()


def main() -> None:
    kernels = inspect()
    print(output(build_native.find_nvcc(), "--version").splitlines()[3])
    print("| target | variant | registers | instructions | of shifted rows | exponentials | loads | of shifted rows |")
    print("|:--|:--|--:|--:|--:|--:|--:|--:|")
    for kernel in kernels:
        if kernel.loops:
            print(row(kernel))


if __name__ == "__main__":
    main()
