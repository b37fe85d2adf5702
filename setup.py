"""Builds the package, and with it the native module where a C++ compiler is at hand. Environment:

STEPOPSD_BUILD   auto (default): build the native module if possible, go on without it if not
                 native: the native module or an error      python: no native module, a pure-Python wheel
STEPOPSD_CUDA    auto (default) and 0: CPU kernels      1: an error, as this version has no CUDA C++ kernels
CXX, CXXFLAGS    compiler and extra flags (for example "-fsanitize=address -g")

The compiler is driven from here, through ninja where it is found: every instruction set needs flags of its own.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = [
    "-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra",
]
LINK = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-pthread"]
ISA_FLAGS = {
    "rows_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    # GCC 12's own header uses undefined registers on purpose and warns about each use.
    "rows_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-Wno-maybe-uninitialized"],
}


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


def include_flags() -> list[str]:
    import pybind11

    return [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]


def obstacle() -> str | None:
    """Why the native module cannot be built here, or None."""
    command = compiler()
    if command is None:
        wanted = os.environ.get("CXX", "g++, clang++ or c++")
        return f"no C++ compiler found (looked for {wanted}; CXX names another)"
    try:
        flags = include_flags()
    except ImportError:
        return "pybind11 is not installed (pip install 'pybind11>=2.12')"
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.cpp"
        probe.write_text("#include <Python.h>\n#include <thread>\nint main() { return 0; }\n")
        run = subprocess.run(
            [*command, *FLAGS, *flags, "-fsyntax-only", str(probe)], capture_output=True, text=True, check=False
        )
    if run.returncode:
        return f"{command[0]} cannot compile against the headers of this Python:\n{run.stderr.strip()}"
    return None


def sources() -> list[Path]:
    files = [ROOT / "csrc" / "module.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    return [f for f in files if IS_X86 or f.name not in ISA_FLAGS]


def compile_command(command: list[str], source: Path, target: Path) -> list[str]:
    defines = ["-DSTEPOPSD_X86"] if IS_X86 else []
    extra = [*ISA_FLAGS.get(source.name, []), *shlex.split(os.environ.get("CXXFLAGS", ""))]
    depfile = ["-MMD", "-MF", f"{target}.d"]
    return [*command, *FLAGS, *defines, *extra, *include_flags(), *depfile, "-c", str(source), "-o", str(target)]


def run_ninja(ninja: str, folder: Path, compiles: dict[Path, tuple[Path, list[str]]], link: list[str]) -> None:
    """Writes one build file and runs it: parallel, and only what changed since the last time."""

    def quote(text: str) -> str:
        return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    lines = ["rule cc", "  command = $run", "  depfile = $out.d", "  deps = gcc", "rule ld", "  command = $run"]
    for target, (source, command) in compiles.items():
        lines += [f"build {quote(str(target))}: cc {quote(str(source))}"]
        lines += [f"  run = {shlex.join(command).replace('$', '$$')}"]
    module = link[link.index("-o") + 1]
    lines += [f"build {quote(module)}: ld {' '.join(quote(str(t)) for t in compiles)}"]
    lines += [f"  run = {shlex.join(link).replace('$', '$$')}"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    subprocess.run([ninja, "-C", str(folder)], check=True)


def run_plain(compiles: dict[Path, tuple[Path, list[str]]], link: list[str]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for done in [workers.submit(subprocess.run, command, check=True) for _, command in compiles.values()]:
            done.result()
    subprocess.run(link, check=True)


def find_ninja() -> str | None:
    beside = Path(sys.executable).with_name("ninja")  # in an environment that is not activated
    return shutil.which("ninja") or (str(beside) if beside.exists() else None)


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        command = compiler()
        if command is None:
            raise CompileError(str(obstacle()))
        folder = Path(self.build_temp).resolve() / "native"
        folder.mkdir(parents=True, exist_ok=True)
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        module.parent.mkdir(parents=True, exist_ok=True)
        compiles = {}
        for source in sources():
            target = folder / f"{source.stem}.o"
            compiles[target] = (source, compile_command(command, source, target))
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        link = [*command, *LINK, *extra, *map(str, compiles), "-o", str(module)]
        try:
            if ninja := find_ninja():
                run_ninja(ninja, folder, compiles, link)
            else:
                run_plain(compiles, link)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"the native module did not compile (exit status {error.returncode})") from error


def extensions() -> list[Extension]:
    mode = choice("STEPOPSD_BUILD", ("auto", "native", "python"))
    if choice("STEPOPSD_CUDA", ("auto", "0", "1")) == "1":
        raise SystemExit(
            "STEPOPSD_CUDA=1: this version has no CUDA C++ kernels; on a GPU the op runs through Triton. "
            "Unset STEPOPSD_CUDA or set it to 0."
        )
    if mode == "python":
        return []
    reason = obstacle()
    if reason and mode == "native":
        raise SystemExit(f"STEPOPSD_BUILD=native: {reason}")
    if reason:
        print(f"stepopsd: going on without the native module: {reason}", file=sys.stderr)
        return []
    paths = [str(path.relative_to(ROOT)) for path in sources()]
    return [Extension("stepopsd._native", paths, language="c++", optional=mode == "auto")]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
