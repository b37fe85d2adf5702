"""The doctor's report: every line says what to do, and the exit code speaks of the op alone."""

from __future__ import annotations

import builtins
import importlib.util
import os

import pytest

from stepopsd import doctor
from stepopsd.ops import dispatch


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
    for path, age in (("csrc/new.cpp", 30), ("stepopsd/_native.so", 20), ("csrc/old.h", 10)):
        (tmp_path / path).touch()
        os.utime(tmp_path / path, (age, age))
    assert doctor._newer_sources(tmp_path / "stepopsd" / "_native.so") == ["new.cpp"]


def test_an_absent_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler --flag")
    compiler = line("C++ compiler")
    assert not compiler.ok
    assert compiler.detail == "none of no-such-compiler found"


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
