"""Imports point down only, the torch-free rooms stay torch-free, and files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stepopsd

ROOT = Path(stepopsd.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LONGEST_FILE = 500

# room -> rooms it may import besides itself
BELOW = {
    "ops": set(),
    "options": set(),
    "text": {"options"},
    "credit": {"ops", "options", "text"},
    "retrieval": set(),
    "envs": {"retrieval"},
    "rollout": {"envs", "retrieval", "text"},
    "train": {"rollout", "envs", "retrieval", "credit", "ops", "options", "text"},
    "experiments": {"train", "rollout", "envs", "retrieval", "credit", "ops", "options", "text"},
    "integrations": {"credit", "ops", "options", "text"},
}
# Folders and modules that must import without torch, with everything that they import.
TORCH_FREE = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("envs", "options", "retrieval", "text")]
TORCH_FREE += [ROOT / "__init__.py", ROOT / "train" / "config.py"]


def imports(path: Path) -> set[tuple[str, ...]]:
    """Parts after ``stepopsd`` of every import of ours in the file, lazy ones included."""
    package = path.relative_to(ROOT.parent).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            found |= {(*module, alias.name) for alias in node.names}
    return {parts[1:] for parts in found if parts[0] == "stepopsd" and len(parts) > 1}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    if room not in BELOW:
        return  # the package root and the command line may use every room
    allowed = BELOW[room] | {room, "__version__"}
    wrong = sorted({parts[0] for parts in imports(path)} - allowed)
    assert not wrong, f"{room} may import {sorted(allowed)}, but {path.name} imports {wrong}"


def test_every_room_has_a_rule() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms <= set(BELOW), f"rooms without a rule: {sorted(rooms - set(BELOW))}"


def test_environments_retrieval_and_configuration_import_no_torch() -> None:
    script = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    script += "    assert 'torch' not in sys.modules, f'{name} imports torch'\n"
    names = [".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for p in TORCH_FREE]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST_FILE, f"{path.relative_to(ROOT)} has {lines} lines"
