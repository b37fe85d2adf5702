"""BM25 on disk with tantivy: mapped files, exact scores, the same answers from every build of a corpus."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepopsd.retrieval.base import MAX_QUERY_WORDS, Passage, RetrieverError, check_request
from stepopsd.retrieval.exact import contribution, length_norm
from stepopsd.retrieval.manifest import read_manifest
from stepopsd.retrieval.tokens import query_words, words

INSTALL_HINT = "pip install 'stepopsd[retrieval]'"
RARE_SHARE = 0.01  #: a word in fewer of the passages than this may bring candidates in; commoner ones only add to them
SMALL = 20_000  #: where fewer passages than this hold any of the words, all of them are scored
MOST_RESCORED = 2048  #: passages of a query whose true score is computed; beyond, tantivy's decides which those are
_SPARE = 2  # candidates beside the k best, which nearly every query can do with
_FLOAT = 1 + 1e-5  # tantivy adds in fp32, in an order of its own


def tantivy() -> Any:
    """The package, or ImportError that says how to get it."""
    try:
        import tantivy
    except ImportError as error:
        raise ImportError(f"an index on disk needs tantivy (Python 3.11 or newer): {INSTALL_HINT}") from error
    return tantivy


def schema() -> Any:
    """Row number, the passage as stored bytes, and its words, which are ours: tantivy only splits at spaces."""
    builder = tantivy().SchemaBuilder()
    builder.add_unsigned_field("row", fast=True)
    builder.add_bytes_field("passage", stored=True)
    builder.add_text_field("words", tokenizer_name="whitespace", index_option="freq")
    return builder.build()


class TantivyIndex:
    """A folder made by ``stepopsd retriever build``. Opening maps its files; it can be read by many processes at once.

    Answers and scores are those of ``ExactIndex``, to the last bit. tantivy keeps passage lengths in a byte, rounded
    down, so its score of a passage is never below the true one: candidates are taken in its order and rescored from
    their text, until the k-th true score is above what tantivy gives to the next. Common words are left out of the
    search for candidates where their largest contributions together cannot reach the last of them (MaxScore).

    Args:
        folder: The index.
        max_query_words: Words of a query that count.

    Raises:
        FileNotFoundError: no finished index there.
        ValueError: it is damaged or empty.
        ImportError: tantivy is not installed.

    Example:
        >>> TantivyIndex("index").search(["who discovered radium"], k=3)

    Source: tantivy's BM25 (k1 = 1.2, b = 0.75); MaxScore: Turtle & Flood 1995.
    """

    def __init__(self, folder: str | Path, *, max_query_words: int = MAX_QUERY_WORDS) -> None:
        package = tantivy()
        self.manifest = read_manifest(folder)
        if self.manifest.kind != "tantivy":
            raise ValueError(f"the index in {folder} is a {self.manifest.kind} index, not a tantivy one")
        total = self.manifest.settings.get("words")
        if not isinstance(total, int):
            raise ValueError(f"the manifest of {folder} does not say how many words the index holds: build it anew")
        self.fingerprint = self.manifest.fingerprint
        self._max_query_words = max_query_words
        try:
            index = package.Index.open(str(Path(folder) / "tantivy"))
            self._searcher = index.searcher()
        except (ValueError, OSError) as error:
            raise ValueError(f"the index in {folder} cannot be opened ({error}): build it anew") from None
        if self._searcher.num_docs != self.manifest.passages:
            raise ValueError(
                f"the index in {folder} holds {self._searcher.num_docs} passages, its {self.manifest.passages} are "
                "promised by the manifest: build it anew"
            )
        self._schema = index.schema
        self._query, self._should, self._must = package.Query, package.Occur.Should, package.Occur.Must
        self._mean = max(total / len(self), 1e-9)
        self._known = lru_cache(1 << 16)(self._look_up)
        self._largest = lru_cache(1 << 14)(self._find_largest)

    def __len__(self) -> int:
        return self.manifest.passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """See ``Retriever.search``. tantivy works without the GIL, so threads run side by side."""
        check_request(queries, k)
        try:
            return [self._search(query, k) for query in queries]
        except (ValueError, OSError) as error:  # damaged or vanished files
            raise RetrieverError(f"the index on disk failed: {error}") from error

    def _search(self, query: str, k: int) -> list[Passage]:
        found = [known for word in query_words(query, self._max_query_words) if (known := self._known(word))]
        if not found:
            return []
        asked = [(word, holding) for holding, word, _ in found]  # in the query's order, as the sum is
        found.sort(key=lambda known: known[0])
        limit, scored = k + _SPARE, dict[tuple[int, int], tuple[Passage, Any]]()
        while True:
            hits = self._best(found, limit)
            if self._rescore(hits, asked, k, scored) or len(hits) < limit or limit == MOST_RESCORED:
                break
            limit = min(4 * limit, MOST_RESCORED)
        passages, addresses = zip(*scored.values(), strict=True)
        rows = self._searcher.fast_field_values("row", list(addresses))
        best = sorted(zip(passages, rows, strict=True), key=lambda scored: (-scored[0].score, scored[1]))[:k]
        return [passage for passage, _ in best]

    def _rescore(
        self, hits: list[tuple[float, Any]], asked: list[tuple[str, int]], k: int,
        scored: dict[tuple[int, int], tuple[Passage, Any]],
    ) -> bool:  # fmt: skip
        """Add true scores to ``scored`` in the order of the hits; whether the k best are certain to be in it."""
        best = heapq.nlargest(k, (passage.score for passage, _ in scored.values()))  # falling
        for most, address in hits:
            if len(best) == k and best[-1] > most * _FLOAT:
                return True
            at = (address.segment_ord, address.doc)
            if at not in scored:
                passage = self._passage(address, asked)
                scored[at] = (passage, address)
                best = heapq.nlargest(k, [*best, passage.score])
        return False

    def _best(self, found: list[tuple[int, str, Any]], limit: int) -> list[tuple[float, Any]]:
        """The ``limit`` best hits. ``found`` is by rising number of passages that hold the word."""
        common = len(found)
        if sum(holding for holding, *_ in found) > SMALL:
            rare = sum(holding <= RARE_SHARE * len(self) for holding, *_ in found)
            common = max(1, rare)
        while True:
            hits = self._searcher.search(self._plan(found, common), limit, count=False).hits
            if common == len(found):
                return hits
            # Passages with common words alone were not looked at. Can one of them be among the best?
            reach, least = 0.0, hits[-1][0] if len(hits) == limit else 0.0
            first = len(found)
            while first > 0 and reach + self._largest(found[first - 1][1]) < least * (1 - 1e-6):
                first -= 1
                reach += self._largest(found[first][1])
            if first <= common:
                return hits
            common = first

    def _plan(self, found: list[tuple[int, str, Any]], common: int) -> Any:
        """Any of the first ``common`` words; each further word adds to the score of what they find."""
        if common == 1:
            query = found[0][2]
        else:
            query = self._query.boolean_query([(self._should, term) for _, _, term in found[:common]])
        # One by one: a union of optional words would be read as a whole, single ones are skipped through.
        for _, _, term in found[common:]:
            query = self._query.boolean_query([(self._must, query), (self._should, term)])
        return query

    def _look_up(self, word: str) -> tuple[int, str, Any] | None:
        holding = self._searcher.doc_freq("words", word)
        return (holding, word, self._query.term_query(self._schema, "words", word, "freq")) if holding else None

    def _find_largest(self, word: str) -> float:
        """The most that a word adds to any passage's score."""
        term = self._query.term_query(self._schema, "words", word, "freq")
        return self._searcher.search(term, 1, count=False).hits[0][0]

    def _passage(self, address: Any, asked: list[tuple[str, int]]) -> Passage:
        """A stored passage with its score by the formula."""
        key, title, text = json.loads(self._searcher.doc(address)["passage"][0])
        counts = Counter(found := words(f"{title} {text}"))
        norm, score = length_norm(len(found), self._mean), 0.0
        for word, holding in asked:
            if word in counts:
                score += contribution(counts[word], norm, holding, len(self))
        return Passage(key, title, text, float(score))
