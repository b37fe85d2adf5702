"""The CUDA backend without a GPU: its launchers, bindings and kernels, on CPU tensors and an emulated GPU.

The sources of csrc/cuda are compiled by the C++ compiler against tests/cuda_emulation, where a CUDA thread is a thread
of the operating system.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from csrc import build_native
from stepopsd.ops import cuda

EMULATION = build_native.ROOT / "tests" / "cuda_emulation"
FLAGS = [
    "-std=c++20", "-O1", "-g0", "-fPIC", "-ffp-contract=off", "-pthread", "-Wno-unknown-pragmas",
    "-DSTEPOPSD_CUDA_EMULATION",
]  # fmt: skip
INCLUDE = [f"-I{folder}" for folder in (EMULATION / "module", EMULATION, build_native.CSRC / "cuda")]


def compile_module(command: list[str]) -> Path:
    """The compiled module; sources that have not changed since the last time are not compiled again."""
    kernels = [f for f in sorted((build_native.CSRC / "cuda").iterdir()) if f.suffix in (".cu", ".cpp")]
    with build_native.build_folder("emulated-cuda") as folder:
        steps = {}
        for source in [*kernels, EMULATION / "machine.cpp", EMULATION / "module" / "module.cpp"]:
            target = folder / f"{source.name}.o"
            files = ["-MMD", "-MF", f"{target}.d", "-x", "c++", "-c", str(source), "-o", str(target)]
            steps[target] = (source, [*command, *FLAGS, *INCLUDE, *build_native.include_flags(), *files])
        module = folder / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
        link = [*command, *build_native.LINK, *map(str, steps), "-o", str(module)]
        if ninja := build_native.find_ninja():
            build_native.run_ninja(ninja, folder, steps, link)
        else:
            build_native.run_plain(steps, link)
    return module


@functools.cache
def load() -> ModuleType | str:
    """The module, or why there is none."""
    if reason := build_native.obstacle():
        return reason
    try:
        path = compile_module(build_native.compiler() or [])
    except subprocess.CalledProcessError as error:
        raise AssertionError("the CUDA sources do not compile for the emulated GPU") from error
    spec = importlib.util.spec_from_file_location("_emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the length of a test, the CUDA backend computes CPU tensors; skips where no compiler is found."""
    module = load()
    if isinstance(module, str):
        pytest.skip(module)

    def on_first_device(problem: type) -> Any:  # CPU tensors have no device index
        return lambda *arguments: problem(*(0 if argument is None else argument for argument in arguments))

    problems = ("CudaScore", "CudaShape", "CudaGradient", "CudaScale", "CudaLoss")
    emulated = SimpleNamespace(**{name: on_first_device(getattr(module, name)) for name in problems})
    monkeypatch.setattr(cuda, "_load", lambda: emulated)
    monkeypatch.setattr(cuda, "availability", lambda device_type: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
