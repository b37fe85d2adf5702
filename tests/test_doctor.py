"""The doctor's report: every line says what to do, and the exit code speaks of the op alone."""

from __future__ import annotations

import builtins
import importlib.util
import os

import pytest

from stepopsd import doctor
from stepopsd.ops import cuda, dispatch


def line(name: str) -> doctor.Check:
    return next(check for check in doctor.report() if check.name == name)


def hide(monkeypatch, *modules):
    """Make modules look uninstalled to find_spec and to import statements."""
    find, real_import = importlib.util.find_spec, builtins.__import__

    def importing(name, *args, **kwargs):
        if name.partition(".")[0] in modules:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in modules else find(name, *a))
    monkeypatch.setattr(builtins, "__import__", importing)


def test_the_op_runs_here_and_the_exit_code_is_zero(capsys):
    assert doctor.main() == 0
    shown = capsys.readouterr().out
    for name in ("torch", "op", "native module", "triton", "text engine", "bundled games"):
        assert name in shown


def test_a_broken_op_fails_the_command_with_its_reason(monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("kernel exploded")

    monkeypatch.setattr("stepopsd.ops.shaping.shape_advantages", broken)
    assert doctor.main() == 1
    assert "RuntimeError: kernel exploded" in " ".join(capsys.readouterr().out.split())


def test_missing_optional_parts_name_what_to_install_and_fail_nothing(monkeypatch, capsys):
    hide(monkeypatch, "textworld", "tyro")
    engine, training = line("text engine"), line("training")
    assert not engine.ok
    assert "textworld" in engine.detail
    assert "constraints-alfworld.txt" in engine.remedy
    assert not training.ok
    assert training.detail == "not installed: tyro"
    assert "stepopsd[train]" in training.remedy
    assert doctor.main() == 0


def test_the_report_is_plain_text_without_rich(monkeypatch, capsys):
    hide(monkeypatch, "rich")
    assert doctor.main() == 0
    shown = capsys.readouterr().out
    assert "not installed: rich" in shown
    assert "-> pip install 'stepopsd[train]'" in shown


def test_a_missing_native_module_says_how_to_get_it(monkeypatch):
    real = importlib.import_module

    def importing(name, *args):
        if name == "stepopsd._native":
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", importing)
    native = line("native module")
    assert not native.ok
    assert "not built" in native.detail
    assert "STEPOPSD_BUILD=native" in native.remedy


def test_a_native_module_older_than_its_sources_is_reported(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "stepopsd").mkdir()
    for path, age in (("csrc/new.cpp", 30), ("stepopsd/_native.so", 20), ("csrc/old.h", 10), ("csrc/new.cuh", 30)):
        (tmp_path / path).touch()
        os.utime(tmp_path / path, (age, age))
    assert doctor._newer_sources(tmp_path / "stepopsd" / "_native.so") == ["new.cpp", "new.cuh"]


def test_an_absent_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler --flag")
    compiler = line("C++ compiler")
    assert not compiler.ok
    assert compiler.detail == "none of no-such-compiler found"


def test_an_absent_nvcc_says_where_it_was_looked_for(monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/no/such/toolkit")
    nvcc = line("nvcc")
    assert not nvcc.ok
    assert nvcc.detail == "not found (/no/such/toolkit/bin/nvcc)"
    assert "CUDA_HOME" in nvcc.remedy


def test_an_nvcc_is_named_with_its_release(monkeypatch, tmp_path):
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho Cuda compiler\necho Cuda compilation tools, release 12.8, V12.8.61\n")
    script.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    nvcc = line("nvcc")
    assert nvcc.ok
    assert nvcc.detail == f"{script}: Cuda compilation tools, release 12.8, V12.8.61"


def test_a_module_without_cuda_kernels_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(cuda, "_load", lambda: "built without CUDA kernels; STEPOPSD_CUDA=1 pip install stepopsd")
    kernels = line("CUDA C++ kernels")
    assert not kernels.ok
    assert (kernels.detail, kernels.remedy) == ("built without CUDA kernels", "STEPOPSD_CUDA=1 pip install stepopsd")


def test_cuda_kernels_that_cannot_run_here_say_why_and_for_what_they_were_compiled(monkeypatch):
    monkeypatch.setattr(cuda, "architectures", lambda: ("sm_80", "sm_90"))
    monkeypatch.setattr(dispatch, "unavailable", lambda *_: "there is no NVIDIA driver")
    kernels = line("CUDA C++ kernels")
    assert not kernels.ok
    assert kernels.detail == "compiled for sm_80, sm_90, cannot run: there is no NVIDIA driver"


@pytest.mark.parametrize("value", [None, "/no/such/folder"])
def test_official_games_that_are_not_there_are_explained(monkeypatch, value):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    if value:
        monkeypatch.setenv("ALFWORLD_DATA", value)
    games = line("official games")
    assert not games.ok
    assert "ALFWORLD_DATA" in games.detail
    assert "stepopsd games download" in games.remedy


def test_triton_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable", lambda *a: "cannot be imported")
    hide(monkeypatch, "triton")
    assert "stepopsd[triton]" in line("triton").remedy


def test_every_extra_says_what_it_brings_and_what_is_missing(monkeypatch):
    required = ["torch>=2.6", "vllm>=0.19; extra == 'vllm'", 'httpx>=0.28; extra == "vllm"', "pytest; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: required)
    monkeypatch.setattr(doctor, "_version", lambda name: "(not installed)" if name == "vllm" else "1")
    vllm, dev = doctor._extras()
    assert (vllm.name, vllm.ok, vllm.remedy) == ("extra vllm", False, "pip install 'stepopsd[vllm]'")
    assert vllm.detail == "rollout.engine vllm and vllm_server; not installed: vllm"
    assert dev.ok
    assert "all of pytest" in dev.detail


def test_a_package_that_is_not_installed_has_no_extras(monkeypatch):
    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", missing)
    [only] = doctor._extras()
    assert not only.ok
    assert "is not installed" in only.detail
