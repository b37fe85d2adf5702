"""What verl loads in every process (entry point group ``verl.plugins``): our trainer modes and our agent loop.

verl imports its plug-ins whenever it is imported itself, in engine and reward processes too. So nothing of verl is
imported here; ours are registered the moment somebody imports the modules of verl that they belong to.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_log = logging.getLogger(__name__)


def register_modes() -> None:
    """Register the trainer modes; where verl is another one than we know, say so and leave verl alone."""
    _register("trainer modes", "stepopsd.integrations.verl.trainer")


def register_loop() -> None:
    """Register the agent loop ``stepopsd``, likewise."""
    _register("agent loop", "stepopsd.integrations.verl.agent_loop")


def _register(what: str, module: str) -> None:
    from stepopsd.integrations.hosts import HostMoved

    try:
        importlib.import_module(module).register()
    except (HostMoved, ImportError) as error:
        # verl itself must stay usable for everybody who does not ask for ours.
        _log.error("stepopsd's %s: not registered in verl: %s", what, error)


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls ``then`` once, right after ``module`` has been imported.

    Args:
        module: Full name.
        then: Called without arguments.
    """

    def __init__(self, module: str, then: Callable[[], None]) -> None:
        self.module, self.then = module, then

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in sys.meta_path)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.then()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register what verl has imported already now, and the rest as soon as it does."""
    for module, register in AFTER.items():
        if module in sys.modules:
            register()
        elif not any(isinstance(finder, AfterImport) and finder.module == module for finder in sys.meta_path):
            sys.meta_path.insert(0, AfterImport(module, register))


#: Module of verl -> what to do once it is there.
AFTER: dict[str, Callable[[], None]] = {
    "verl.trainer.ppo.v1": register_modes,
    "verl.experimental.agent_loop": register_loop,
}
install()
