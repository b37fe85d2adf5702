"""The plug-in imports nothing of verl, and registers once verl's own modules are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import stepopsd
from stepopsd.integrations.verl.plugin import AfterImport


def test_it_acts_right_after_the_module_and_once(tmp_path, monkeypatch):
    package = tmp_path / "some_host"
    package.mkdir()
    (package / "__init__.py").write_text("from some_host.trainers import REGISTRY\n")
    (package / "trainers.py").write_text("REGISTRY = {'sync': 1}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = []
    finder = AfterImport("some_host", lambda: seen.append(dict(sys.modules["some_host"].REGISTRY)))
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    __import__("some_host.trainers")
    assert seen == [{"sync": 1}]
    assert finder not in sys.meta_path


def test_loading_it_imports_neither_verl_nor_torch():
    script = "import sys, stepopsd.integrations.verl.plugin as p; p.install()\n"
    script += "assert not {'verl', 'torch', 'ray'} & set(sys.modules)\n"
    script += "assert sum(isinstance(f, p.AfterImport) for f in sys.meta_path) == len(p.AFTER)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_entry_point_names_it():
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    pyproject = Path(stepopsd.__file__).parents[1] / "pyproject.toml"
    points = tomllib.loads(pyproject.read_text())["project"]["entry-points"]["verl.plugins"]
    assert points == {"stepopsd": "stepopsd.integrations.verl.plugin"}
