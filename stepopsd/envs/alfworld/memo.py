"""The real TextWorld PDDL interpreter with its repeated work done once; text, commands and outcome stay the same.

As installed, every step parses the same grammar strings and the same queries again, copies objects that nothing
changes, and every reset translates the same problem twice. Here private copies of three TextWorld modules are
executed from their own files and only the names that do this work are rebound in the copies, so the installed
modules stay as they are and other users of TextWorld in this process see no difference.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from types import ModuleType, SimpleNamespace
from typing import Any

#: Releases whose sources were read for the rebound names below.
KNOWN_VERSIONS = {"textworld": ("1.7.0",), "fast-downward-textworld": ("20.6.4",)}
#: Games whose translation and grammar are kept; about 2 MB each.
CACHED_GAMES = 48


def supported() -> bool:
    """Whether the installed releases are ones that the rebinding was written for; warns once if not."""
    installed = {name: importlib.metadata.version(name) for name in KNOWN_VERSIONS}
    unknown = [f"{name} {version}" for name, version in installed.items() if version not in KNOWN_VERSIONS[name]]
    if unknown:
        warnings.warn(
            f"{', '.join(unknown)}: not a release that memoisation was written for ({KNOWN_VERSIONS}); "
            "the engine runs as installed, about 20 times slower",
            RuntimeWarning,
            stacklevel=2,
        )
    return not unknown


@cache
def memoised_pddl_env() -> type:
    """TextWorld's ``PddlEnv`` class from the private, memoised module copies."""
    textgen = _memoised_textgen()
    logic = _memoised_logic(textgen)
    pddl: Any = _private_copy("textworld.envs.pddl.pddl")
    pddl.pddl_logic = logic
    pddl.fast_downward = SimpleNamespace(load_lib=_Planner)
    return pddl.PddlEnv


class _PlannerInput:
    """The second translation, which only planning reads; stands in for its text until then."""

    def __init__(self, translate: Callable[[], str]) -> None:
        self._translate = translate

    def encode(self, _encoding: str) -> _PlannerInput:
        return self

    def bytes(self) -> bytes:
        return self._translate().encode("utf-8")


class _Planner:
    """One loaded copy of Fast Downward that takes its planning input when a plan is first asked for."""

    def __init__(self) -> None:
        self._library = _load_library()
        self._pending: _PlannerInput | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def load_sas_replan(self, planner_input: _PlannerInput) -> None:
        self._pending = planner_input

    def replan(self, verbose: bool) -> bool:
        if self._pending is not None:
            self._library.load_sas_replan(self._pending.bytes())
            self._pending = None
        return bool(self._library.replan(verbose))


def unload(library: Any) -> None:
    """Free what ``PddlEnv`` loaded; the environment itself never does."""
    import fast_downward

    fast_downward.close_lib(library._library if isinstance(library, _Planner) else library)


def _load_library() -> Any:
    import fast_downward

    return fast_downward.load_lib()


def _private_copy(name: str) -> ModuleType:
    origin = importlib.util.find_spec(name)
    assert origin is not None
    assert origin.origin is not None
    private_name = "stepopsd_private." + name
    spec = importlib.util.spec_from_file_location(private_name, origin.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[private_name] = module
    spec.loader.exec_module(module)
    return module


def _memoised_textgen() -> ModuleType:
    module: Any = _private_copy("textworld.envs.pddl.textgen")

    def copy_symbols(value: Any) -> Any:
        """One level deep is enough: only ``context`` of a symbol and of a list's inner symbol is ever assigned."""
        if isinstance(value, list):
            return [copy_symbols(item) for item in value]
        fresh = copy.copy(value)
        if isinstance(fresh, module.ListSymbol):
            fresh.symbol = copy_symbols(fresh.symbol)
        return fresh

    def copy_context(context: dict[str, Any]) -> dict[str, Any]:
        """The two dictionaries are extended by their owners; what they hold is never changed."""
        return {**context, "variables": dict(context["variables"]), "mapping": dict(context["mapping"])}

    parse = lru_cache(maxsize=8192)(module._parse_and_convert)

    def parse_symbols(text: str, rule_name: str, trace: bool = False) -> Any:
        return copy_symbols(parse(text, rule_name=rule_name))

    compiled = lru_cache(maxsize=1024)(lambda expression: compile(expression, "<grammar>", "eval"))

    def derive(symbol: Any, context: Any = None) -> list[Any]:
        """Explicit locals: the installed method updates ``locals()``, which has no effect from Python 3.13 on."""
        context = context or symbol.context
        names = {"self": symbol, "context": context, **context["variables"]}
        return [module.TerminalSymbol(eval(compiled(symbol.expression), vars(module), names))]

    module.deepcopy = copy_symbols
    module.copy_context = copy_context
    module._parse_and_convert = parse_symbols
    module.EvalSymbol.derive = derive
    # A rule is only read after parsing, so one object can serve every query with the same words.
    module.Rule = SimpleNamespace(
        parse_conjunctive_query=lru_cache(maxsize=8192)(module.Rule.parse_conjunctive_query)
    )
    return module


def _memoised_logic(textgen: ModuleType) -> ModuleType:
    module: Any = _private_copy("textworld.envs.pddl.logic")
    real = module.fast_downward
    translate = lru_cache(maxsize=CACHED_GAMES)(real.pddl2sas)

    def pddl2sas(domain: str, problem: str, verbose: bool = False, optimize: bool = False) -> tuple[Any, Any]:
        if optimize:
            return None, _PlannerInput(lambda: translate(domain, problem, optimize=True)[1])
        return translate(domain, problem)

    module.fast_downward = SimpleNamespace(
        pddl2sas=pddl2sas, Atom=real.Atom, Operator=real.Operator, translate=real.translate
    )
    module.ContextSensitiveGrammar = textgen.ContextSensitiveGrammar
    module.GameLogic = lru_cache(maxsize=CACHED_GAMES)(module.GameLogic)
    return module
