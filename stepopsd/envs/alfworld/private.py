"""Private copies of installed modules, so that names can be rebound without touching the installed ones."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


def private_copy(name: str) -> Any:
    """Execute the module's own file again under a private name and return that second module."""
    installed = importlib.util.find_spec(name)
    if installed is None or installed.origin is None:
        raise ImportError(f"module {name!r} has no file to execute")
    private_name = "stepopsd_private." + name
    spec = importlib.util.spec_from_file_location(private_name, installed.origin)
    if spec is None or spec.loader is None:
        raise ImportError(f"module {name!r} cannot be executed from {installed.origin}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[private_name] = module
    spec.loader.exec_module(module)
    return module
