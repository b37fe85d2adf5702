"""The retrieval protocol: queries in, passages out; one exception for every way in which that can fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_QUERY_WORDS = 64  #: words of a query that count; a runaway generation costs no more than this
MAX_K = 100  #: most passages that one query may ask for


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of a corpus, and how well it answered a query.

    Attributes:
        id: The corpus's own id, unique within it.
        title: Title of the article; may be empty.
        text: The passage, unchanged: it may hold anything, tags and control tokens included.
        score: Higher is better; comparable within one query's answer only. 0 for passages that no query returned.
    """

    id: str
    title: str
    text: str
    score: float = 0.0


class RetrieverError(RuntimeError):
    """No answer could be had: the server is down, speaks another dialect, answered nonsense or not in time.

    It is about the infrastructure, never about the query, so its words must not be shown to a policy.

    Attributes:
        partial: One entry per query, its passages or None where the answer is missing; None when nothing is known.
    """

    def __init__(self, message: str, partial: list[list[Passage] | None] | None = None) -> None:
        super().__init__(message)
        self.partial = partial


class Retriever(Protocol):
    """Looks passages up. Implementations may be called from several threads at once.

    Example:
        >>> retriever = open_retriever("corpus.jsonl")
        >>> [[passage]] = retriever.search(["who designed the bridge at Brooklyn"], k=1)
    """

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """The best passages of every query.

        Args:
            queries: Any text; only its first ``MAX_QUERY_WORDS`` words count. No query language is parsed.
            k: Most passages per query, in [1, MAX_K].

        Returns:
            One list per query, in the order of ``queries``, each by falling score; equal scores in corpus order.
            Shorter than ``k`` when fewer passages match, empty when none does. No passage comes up twice in a list.

        Raises:
            ValueError: if ``k`` is out of range or a query is not a string.
            RetrieverError: if the answer to some query could not be had.
        """
        ...


def check_request(queries: Sequence[str], k: int, *, max_k: int = MAX_K) -> None:
    """Raise ValueError for what ``Retriever.search`` does not take, naming the argument and the value."""
    if isinstance(queries, str):
        raise ValueError(f"queries must be a sequence of strings, got one string: {queries[:80]!r}")
    for at, query in enumerate(queries):
        if not isinstance(query, str):
            raise ValueError(f"queries[{at}] must be a string, got {type(query).__name__}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= max_k:
        raise ValueError(f"k must be an integer in [1, {max_k}], got {k!r}")
