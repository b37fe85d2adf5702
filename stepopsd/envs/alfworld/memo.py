"""The real TextWorld PDDL interpreter with its repeated work done once; text, commands and outcome stay the same.

As installed, every step parses the same grammar strings and the same queries again and copies objects that nothing
changes, and every reset translates the same problem twice. Here TextWorld's modules are executed a second time, from
their own files and under private names, and only the names that do this work are rebound in those copies: the
installed modules stay as they are and other users of TextWorld in this process see no difference.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

from stepopsd.envs.alfworld.facts import indexed_state
from stepopsd.envs.alfworld.planner import Planner, PlannerInput
from stepopsd.envs.alfworld.private import private_copy

#: Releases whose sources were read for the names rebound below.
KNOWN_VERSIONS = {"textworld": ("1.7.0",), "fast-downward-textworld": ("20.6.4",)}
#: Facts that TextWorld's table of all facts ever seen, about 1,000 a game, may hold.
REMEMBERED_FACTS = 50_000
#: Games whose translation and grammar are kept, least recently used out first.
CACHED_GAMES = 48


@cache
def supported() -> bool:
    """Whether the installed releases are ones that the rebinding was written for; warns if not."""
    installed = {name: importlib.metadata.version(name) for name in KNOWN_VERSIONS}
    unknown = [f"{name} {version}" for name, version in installed.items() if version not in KNOWN_VERSIONS[name]]
    if unknown:
        known = ", ".join(f"{name} {' or '.join(versions)}" for name, versions in KNOWN_VERSIONS.items())
        warnings.warn(
            f"memoisation was written for {known}, found {', '.join(unknown)}: "
            "the engine runs as installed, about 20 times slower",
            RuntimeWarning,
            stacklevel=3,
        )
    return not unknown


@cache
def memoised_pddl_env() -> Any:
    """TextWorld's ``PddlEnv`` class from private module copies in which repeated work is done once."""
    module = private_copy("textworld.envs.pddl.pddl")
    logic = _memoised_logic(_memoised_textgen())
    new_state = indexed_state(logic.PddlState)
    beginning = lru_cache(maxsize=CACHED_GAMES)(lambda problem, game_logic: SimpleNamespace(state=None))

    def pddl_state(library: Planner, problem: str, game_logic: Any) -> Any:
        state, library.untouched_state = library.untouched_state, None
        if state is not None and state.pddl_problem is problem and state._logic is game_logic:
            return state
        kept = beginning(problem, game_logic)
        if kept.state is not None:
            return kept.state.restart(library)
        state = new_state(library, problem, game_logic)
        kept.state = state.snapshot()
        return state

    class MemoisedPddlEnv(module.PddlEnv):  # type: ignore[name-defined]
        def load(self, game: Any) -> None:
            """The state built here is only read for names, so the first reset need not build it again."""
            _forget_old_facts()
            super().load(game)
            self.downward_lib.untouched_state = self._pddl_state

    module.pddl_logic = SimpleNamespace(GameLogic=logic.GameLogic, PddlState=pddl_state)
    module.fast_downward = SimpleNamespace(load_lib=Planner)
    return MemoisedPddlEnv


def _forget_old_facts() -> None:
    """The table saves making equal facts twice and nothing depends on it; it never forgets, about 0.7 MB a game."""
    from mementos import core

    if len(core._memento_cache) > REMEMBERED_FACTS:
        core._memento_cache.clear()


def _memoised_textgen() -> Any:
    module = private_copy("textworld.envs.pddl.textgen")

    def copy_symbols(value: Any) -> Any:
        """One level is enough: only ``context`` of a symbol and of a list's inner symbol is ever assigned."""
        if isinstance(value, list):
            return [copy_symbols(item) for item in value]
        fresh = object.__new__(type(value))
        vars(fresh).update(vars(value))
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

    # A rule is only read after parsing, so one object can serve every query with the same words.
    query = lru_cache(maxsize=8192)(module.Rule.parse_conjunctive_query)
    module.Rule = SimpleNamespace(parse_conjunctive_query=query)
    module.check_flag = cache(module.check_flag)  # read from the environment at every symbol otherwise
    module.deepcopy = copy_symbols
    module.copy_context = copy_context
    module._parse_and_convert = parse_symbols
    module.EvalSymbol.derive = derive
    return module


def _memoised_logic(textgen: Any) -> Any:
    module = private_copy("textworld.envs.pddl.logic")
    real = module.fast_downward
    translate = lru_cache(maxsize=CACHED_GAMES)(real.pddl2sas)

    def pddl2sas(domain: str, problem: str, verbose: bool = False, optimize: bool = False) -> Any:
        """The optimised translation serves planning alone and is put off until then."""
        if optimize:
            return None, PlannerInput(lambda: real.pddl2sas(domain, problem, optimize=True)[1])
        return translate(domain, problem)

    module.fast_downward = SimpleNamespace(
        pddl2sas=pddl2sas, Atom=real.Atom, Operator=real.Operator, translate=real.translate
    )
    module.ContextSensitiveGrammar = textgen.ContextSensitiveGrammar
    module.GameLogic = lru_cache(maxsize=CACHED_GAMES)(module.GameLogic)
    return module
