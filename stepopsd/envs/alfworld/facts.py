"""The facts of a game, sorted once and indexed, so that a question about a few of them need not look at all.

The engine asks queries of its grammar for most commands that it offers, at every step. As installed, each answer sorts
all facts of a kind and tries one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any


def indexed_state(base: Any) -> Any:
    """A subclass of TextWorld's ``PddlState`` that gives the same answers in the same order."""

    class IndexedState(base):
        def __init__(self, *arguments: Any) -> None:
            self._all_facts: tuple[Any, ...] | None = None
            self._indexes: dict[Any, _Index] = {}
            self._subtypes: dict[Any, list[Any]] = {}
            super().__init__(*arguments)

        def snapshot(self) -> Any:
            """A copy that can be kept: bound to no planner."""
            return self._copy(None)

        def restart(self, library: Any) -> Any:
            """From a snapshot of an untouched state: the game's beginning once more, loaded into ``library``."""
            library.load_sas(self.sas.encode("utf-8"))
            library.load_sas_replan(self.sas_replan.encode("utf-8"))
            return self._copy(library)

        def _copy(self, library: Any) -> Any:
            fresh: Any = object.__new__(type(self))
            vars(fresh).update(vars(self), downward_lib=library)
            for name in ("_facts", "_vars_by_type"):
                sets = vars(self)[name]
                setattr(fresh, name, type(sets)(set, {key: set(values) for key, values in sets.items()}))
            for name in ("_vars_by_name", "_var_counts", "_indexes"):
                setattr(fresh, name, vars(self)[name].copy())
            return fresh

        @property
        def facts(self) -> Sequence[Any]:
            if self._all_facts is None:
                self._all_facts = tuple(fact for facts in self._facts.values() for fact in facts)
            return self._all_facts

        def add_fact(self, fact: Any) -> None:
            self._forget(fact)
            super().add_fact(fact)

        def remove_fact(self, fact: Any) -> None:
            self._forget(fact)
            super().remove_fact(fact)

        def _forget(self, fact: Any) -> None:
            self._all_facts = None
            self._indexes.pop(fact.signature, None)

        def _all_applicable_assignments(
            self, rule: Any, mapping: dict[Any, Any], used: set[Any], new: list[list[Any]], depth: int
        ) -> Iterator[dict[Any, Any]]:
            """Extend ``mapping`` by facts that fit precondition after precondition, each variable used once.

            Args:
                new: For each precondition the placeholders that come up there first, then those that come up in none.
            """
            if depth == len(rule.preconditions):
                yield from self._all_assignments(new[depth], mapping, used, False) if new[depth] else (mapping.copy(),)
                return
            predicate = rule.preconditions[depth]
            for signature in self._signatures(predicate.signature):
                for fact in self._index(signature).fitting(predicate.parameters, mapping):
                    if _bind(predicate.parameters, fact.arguments, mapping, used):
                        yield from self._all_applicable_assignments(rule, mapping, used, new, depth + 1)
                    for placeholder in new[depth]:
                        used.discard(mapping.pop(placeholder, None))

        def _signatures(self, signature: Any) -> list[Any]:
            """The signature with its types and all their subtypes, in TextWorld's order."""
            if signature not in self._subtypes:
                types = self._logic.types
                chosen = types.multi_subtypes([types.get(name) for name in signature.types])
                self._subtypes[signature] = [
                    type(signature)(signature.name, [each.name for each in choice]) for choice in chosen
                ]
            return self._subtypes[signature]

        def _index(self, signature: Any) -> _Index:
            if signature not in self._indexes:
                self._indexes[signature] = _Index(self.facts_with_signature(signature))
            return self._indexes[signature]

    return IndexedState


def _bind(placeholders: Sequence[Any], variables: Sequence[Any], mapping: dict[Any, Any], used: set[Any]) -> bool:
    """Assign variables to placeholders; whether they agree with earlier assignments. The caller takes them back."""
    for placeholder, variable in zip(placeholders, variables, strict=False):
        known = mapping.get(placeholder)
        if known is None:
            if variable in used:
                return False
            mapping[placeholder] = variable
            used.add(variable)
        elif known != variable:
            return False
    return True


class _Index:
    """Facts of one signature in TextWorld's order, and those that hold a variable at a position."""

    __slots__ = ("_by_variable", "_facts")

    def __init__(self, facts: set[Any]) -> None:
        self._facts: list[Any] = sorted(facts, key=_order)
        self._by_variable: dict[int, dict[Any, list[Any]]] = {}

    def fitting(self, placeholders: Sequence[Any], mapping: dict[Any, Any]) -> Sequence[Any]:
        """All facts that agree with the first placeholder that is assigned already; the others may differ."""
        for position, placeholder in enumerate(placeholders):
            variable = mapping.get(placeholder)
            if variable is not None:
                return self._holding(position).get(variable, ())
        return self._facts

    def _holding(self, position: int) -> dict[Any, list[Any]]:
        if position not in self._by_variable:
            groups: dict[Any, list[Any]] = {}
            for fact in self._facts:
                groups.setdefault(fact.arguments[position], []).append(fact)
            self._by_variable[position] = groups
        return self._by_variable[position]


_name_and_type = attrgetter("name", "type")


def _order(fact: Any) -> tuple[Any, ...]:
    return tuple(map(_name_and_type, fact.arguments))
