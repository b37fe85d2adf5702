"""Compiles csrc/ to the native module, with the standard library alone.

setup.py drives it. `python csrc/build_native.py` builds the module in place without setuptools or pip, for a machine
that has compilers and torch but no network. The environment variables are those of setup.py.

The compilers are driven from here, through ninja where it is found: every instruction set needs flags of its own.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).parent.resolve()
ROOT = CSRC.parent
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = [
    "-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra",
]
LINK = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-pthread"]
# GCC 12's own header uses undefined registers on purpose and warns about each use.
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-Wno-maybe-uninitialized"]
ISA_FLAGS = {
    "rows_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "rows_avx512.cpp": AVX512_FLAGS,
    "rows_avx512bf16.cpp": [*AVX512_FLAGS, "-mavx512bf16"],
}
CUDA_ARCHS = "80;90;100"
NVCC_FLAGS = ["-std=c++17", "-O3", "-lineinfo", "--threads", "0"]
# The CUDA runtime goes in as an archive: the module then loads without CUDA libraries, and its runtime must not be
# replaced by the one that torch has loaded, which may be of another version.
NVCC_LINK = ["-shared", "--no-device-link", "-cudart", "static", "-Xlinker", "--exclude-libs,ALL"]

Compiles = dict[Path, tuple[Path, list[str]]]  # object: (source, command)


class BuildError(Exception):
    """The native module cannot be built; the message says why."""


class Toolkit(NamedTuple):
    """nvcc and what it is asked for."""

    nvcc: str
    archs: list[str]  # compute capabilities without the dot, rising
    flags: list[str]


def say(text: str) -> None:
    print(f"stepopsd: {text}", file=sys.stderr)


def choice(name: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, "auto").lower()
    if value not in allowed:
        raise SystemExit(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    return value


def compiler() -> list[str] | None:
    """The C++ compiler's command, or None."""
    if "CXX" in os.environ:
        command = shlex.split(os.environ["CXX"])
        return command if command and shutil.which(command[0]) else None
    found = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    return [found] if found else None


def pybind11_include() -> str | None:
    """The headers of pybind11: its own package's, else the copy that torch brings. Neither is imported."""
    for package in ("pybind11", "torch"):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / "include" / "pybind11" / "pybind11.h").exists():
                return str(Path(folder) / "include")
    return None


def include_flags() -> list[str]:
    # As system headers: their warnings are not ours, and torch's folder holds far more than pybind11.
    return ["-isystem", str(pybind11_include()), "-isystem", sysconfig.get_path("include")]


def extra_flags() -> list[str]:
    return shlex.split(os.environ.get("CXXFLAGS", ""))


def obstacle() -> str | None:
    """Why the native module cannot be built here, or None."""
    command = compiler()
    if command is None:
        wanted = os.environ.get("CXX", "g++, clang++ or c++")
        return f"no C++ compiler found (looked for {wanted}; CXX names another)"
    if pybind11_include() is None:
        return "pybind11 is not installed (pip install 'pybind11>=2.12')"
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.cpp"
        probe.write_text("#include <Python.h>\n#include <thread>\nint main() { return 0; }\n")
        run = subprocess.run(
            [*command, *FLAGS, *include_flags(), "-fsyntax-only", str(probe)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if run.returncode:
        return f"{command[0]} cannot compile against the headers of this Python:\n{run.stderr.strip()}"
    return None


def find_nvcc() -> str | None:
    """The one in CUDA_HOME where that is set, else the one in PATH, else that of /usr/local/cuda."""
    if home := os.environ.get("CUDA_HOME"):
        return shutil.which(str(Path(home) / "bin" / "nvcc"))
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def cuda_toolkit() -> Toolkit | str:
    """nvcc and its flags, or why there are no CUDA kernels to be had. No GPU is looked at."""
    nvcc = find_nvcc()
    if nvcc is None:
        where = os.environ.get("CUDA_HOME") or "PATH or /usr/local/cuda"
        return f"no nvcc in {where}; CUDA_HOME names the toolkit's folder"
    wanted = [arch for arch in re.split(r"[;,\s]+", os.environ.get("STEPOPSD_CUDA_ARCHS") or CUDA_ARCHS) if arch]
    if bad := [arch for arch in wanted if not re.fullmatch(r"\d{2,3}", arch)]:
        return f"STEPOPSD_CUDA_ARCHS must look like '{CUDA_ARCHS}', got {bad[0]!r}"
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False)
    if listed.returncode:
        return f"{nvcc} --list-gpu-code failed: {listed.stderr.strip()}"
    known = set(re.findall(r"sm_(\d+)", listed.stdout))
    archs = sorted(set(wanted) & known, key=int)
    if not archs:
        return f"{nvcc} compiles for none of the architectures {', '.join(wanted)}"
    if unknown := sorted(set(wanted) - known, key=int):
        say(f"no machine code for {', '.join(f'sm_{arch}' for arch in unknown)}: {nvcc} does not know them")
    return Toolkit(nvcc, archs, nvcc_flags(nvcc, archs))


def nvcc_flags(nvcc: str, archs: list[str]) -> list[str]:
    """Machine code for each architecture, and PTX of the newest for the chips after it."""
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    options = subprocess.run([nvcc, "--help"], capture_output=True, text=True, check=False).stdout
    smaller = ["--compress-mode=size"] if "--compress-mode" in options else []
    return [*NVCC_FLAGS, *smaller, *codes]


def host_flags(*flags: str) -> list[str]:
    """Flags for the host compiler, as nvcc passes them on."""
    return [part for flag in flags for part in ("-Xcompiler", flag.replace(",", "\\,"))]


def host_compiler(command: list[str]) -> list[str]:
    named = command[1:] if Path(command[0]).name in ("ccache", "sccache") else command
    return ["-ccbin", *named[:1], *host_flags(*named[1:])]


def sources(cuda: bool) -> list[Path]:
    files = [CSRC / "module.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]
    files = [f for f in files if IS_X86 or f.name not in ISA_FLAGS]
    return [*files, *sorted(f for f in (CSRC / "cuda").iterdir() if f.suffix in (".cpp", ".cu"))] if cuda else files


def compile_command(command: list[str], source: Path, target: Path, cuda: Toolkit | None) -> list[str]:
    common = [*include_flags(), "-MMD", "-MF", f"{target}.d", "-c", str(source), "-o", str(target)]
    if cuda and source.parent.name == "cuda":
        host = host_flags("-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", *extra_flags())
        return [cuda.nvcc, *host_compiler(command), *cuda.flags, *host, *common]
    defines = ["-DSTEPOPSD_X86"] if IS_X86 else []
    defines += ["-DSTEPOPSD_WITH_CUDA"] if cuda and source.name == "module.cpp" else []
    return [*command, *FLAGS, *defines, *ISA_FLAGS.get(source.name, []), *extra_flags(), *common]


def link_command(command: list[str], objects: list[Path], module: Path, cuda: Toolkit | None) -> list[str]:
    files = [*map(str, objects), "-o", str(module)]
    if cuda:
        return [cuda.nvcc, *host_compiler(command), *NVCC_LINK, *host_flags("-pthread", *extra_flags()), *files]
    return [*command, *LINK, *extra_flags(), *files]


def run_ninja(ninja: str, folder: Path, compiles: Compiles, link: list[str]) -> None:
    """Writes one build file and runs it: parallel, and only what changed since the last time."""

    def quote(text: str) -> str:
        return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    lines = ["rule cc", "  command = $run", "  description = $in", "  depfile = $out.d", "  deps = gcc"]
    lines += ["rule ld", "  command = $run", "  description = $out"]
    for target, (source, command) in compiles.items():
        lines += [f"build {quote(str(target))}: cc {quote(str(source))}"]
        lines += [f"  run = {shlex.join(command).replace('$', '$$')}"]
    module = link[link.index("-o") + 1]
    lines += [f"build {quote(module)}: ld {' '.join(quote(str(t)) for t in compiles)}"]
    lines += [f"  run = {shlex.join(link).replace('$', '$$')}"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    subprocess.run([ninja, "-C", str(folder)], check=True)


def run_plain(compiles: Compiles, link: list[str]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for done in [workers.submit(subprocess.run, command, check=True) for _, command in compiles.values()]:
            done.result()
    subprocess.run(link, check=True)


def find_ninja() -> str | None:
    beside = Path(sys.executable).with_name("ninja")  # in an environment that is not activated
    return shutil.which("ninja") or (str(beside) if beside.exists() else None)


@contextmanager
def build_folder(kind: str = "native") -> Iterator[Path]:
    """Where objects are kept from one build to the next, for one process at a time."""
    import fcntl

    folder = ROOT / "build" / f"{kind}-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def compile_and_link(command: list[str], module: Path, cuda: Toolkit | None) -> None:
    module.parent.mkdir(parents=True, exist_ok=True)
    with build_folder() as folder:
        steps = {}
        for source in sources(cuda is not None):
            target = folder / source.relative_to(CSRC).with_suffix(f"{source.suffix}.o")
            target.parent.mkdir(exist_ok=True)
            steps[target] = (source, compile_command(command, source, target, cuda))
        link = link_command(command, list(steps), module, cuda)
        if ninja := find_ninja():
            run_ninja(ninja, folder, steps, link)
        else:
            run_plain(steps, link)


def compiles(command: list[str], module: Path, cuda: Toolkit | None) -> bool:
    try:
        compile_and_link(command, module, cuda)
    except subprocess.CalledProcessError:
        return False  # the compiler has said why
    return True


def build(module: Path) -> None:
    """Builds the module file, with CUDA kernels as STEPOPSD_CUDA asks.

    Raises:
        BuildError: A compiler is missing or failed.
    """
    start, command, mode = time.monotonic(), compiler(), choice("STEPOPSD_CUDA", ("auto", "0", "1"))
    if command is None:
        raise BuildError(obstacle())
    cuda = "STEPOPSD_CUDA=0" if mode == "0" else cuda_toolkit()
    if isinstance(cuda, Toolkit) and not compiles(command, module, cuda):
        cuda = "they did not compile, see above"
    if isinstance(cuda, str):
        if mode == "1":
            raise BuildError(f"STEPOPSD_CUDA=1: {cuda}")
        if not compiles(command, module, None):
            raise BuildError("the native module did not compile, see above")
    extent = f"without CUDA kernels ({cuda})" if isinstance(cuda, str) else f"CUDA kernels for {', '.join(cuda.archs)}"
    say(f"built {module.name}, {module.stat().st_size / 1e6:.1f} MB, in {time.monotonic() - start:.0f} s; {extent}")


def main() -> None:
    if reason := obstacle():
        raise SystemExit(f"stepopsd: no native module: {reason}")
    try:
        build(ROOT / "stepopsd" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}")
    except BuildError as error:
        raise SystemExit(f"stepopsd: {error}") from error


if __name__ == "__main__":
    main()
