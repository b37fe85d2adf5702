"""Builds the package, and with it the native module where a C++ compiler is at hand. Environment:

STEPOPSD_BUILD       auto (default): build the native module if possible, go on without it if not
                     native: the native module or an error      python: no native module, a pure-Python wheel
STEPOPSD_CUDA        auto (default): CUDA kernels too where nvcc is found, CPU kernels alone if it is missing or fails
                     0: CPU kernels alone      1: the CUDA kernels or an error
STEPOPSD_CUDA_ARCHS  compute capabilities to compile for, "80;90;100" by default, and PTX of the newest
CUDA_HOME            the CUDA toolkit's folder, instead of the nvcc in PATH or /usr/local/cuda
CXX, CXXFLAGS        compiler and extra flags (for example "-fsanitize=address -g")

The module is compiled by csrc/build_native.py, which also works alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "csrc"))
import build_native  # noqa: E402


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            build_native.build(Path(self.get_ext_fullpath(ext.name)).resolve())
        except build_native.BuildError as error:
            raise CompileError(str(error)) from error


def extensions() -> list[Extension]:
    mode = build_native.choice("STEPOPSD_BUILD", ("auto", "native", "python"))
    cuda = build_native.choice("STEPOPSD_CUDA", ("auto", "0", "1"))
    reason = "STEPOPSD_BUILD=python leaves the native module out" if mode == "python" else build_native.obstacle()
    if reason is None and cuda == "1" and isinstance(toolkit := build_native.cuda_toolkit(), str):
        reason = toolkit
    if reason and cuda == "1":
        raise SystemExit(f"STEPOPSD_CUDA=1: {reason}")
    if reason and mode == "native":
        raise SystemExit(f"STEPOPSD_BUILD=native: {reason}")
    if reason and mode == "auto":
        build_native.say(f"going on without the native module: {reason}")
    if reason:
        return []
    paths = [str(path.relative_to(ROOT)) for path in build_native.sources(cuda != "0")]
    return [Extension("stepopsd._native", paths, language="c++", optional=mode == "auto" and cuda != "1")]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
