"""BM25 by its formula, in memory: the specification of the other lexical index, and all that a small corpus needs."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stepopsd.retrieval.base import MAX_QUERY_WORDS, Passage, check_request
from stepopsd.retrieval.corpus import read_passages
from stepopsd.retrieval.tokens import query_words, words

K1, B = 1.2, 0.75
MOST_PASSAGES = 200_000


def length_norm(length: Any, mean: float) -> Any:
    """k1 (1 - b + b |d| / mean |d|), of one length or an array of them."""
    return K1 * (1 - B + B * length / mean)


def contribution(counts: Any, norms: Any, holding: int, total: int) -> Any:
    """What a word that ``holding`` of ``total`` passages hold, ``counts`` times each, adds to their scores."""
    idf = math.log(1 + (total - holding + 0.5) / (holding + 0.5))
    return idf * (K1 + 1) * counts / (counts + norms)


class ExactIndex:
    """Scores every passage that shares a word with the query; no pruning, no rounding.

    score(d) = Σ_w ln(1 + (N - n_w + ½) / (n_w + ½)) · (k1 + 1) f / (f + k1 (1 - b + b |d| / mean |d|)) over the query's
    distinct words w, where n_w of N passages hold w, f is how often d does, and a passage is its title and its text.

    Args:
        passages: At most 200,000.
        max_query_words: Words of a query that count.

    Raises:
        ValueError: no passages, too many, or two with the same id.

    Source: Robertson & Zaragoza 2009, with k1 = 1.2 and b = 0.75 as in Lucene and tantivy.

    Example:
        >>> index = ExactIndex([Passage("0", "Mercury", "closest to the sun"), Passage("1", "Venus", "the hottest")])
        >>> index.search(["which is hottest?"], k=3)[0][0].title
        'Venus'
    """

    def __init__(
        self,
        passages: Iterable[Passage],
        *,
        max_query_words: int = MAX_QUERY_WORDS,
    ) -> None:
        self._passages: list[Passage] = []
        self._max_query_words = max_query_words
        rows: dict[str, list[int]] = {}
        counts: dict[str, list[int]] = {}
        lengths, ids, digest = [], set(), hashlib.sha256()
        for row, passage in enumerate(passages):
            if row == MOST_PASSAGES:
                raise ValueError(
                    f"more than {MOST_PASSAGES:,} passages are too many for an index in memory: "
                    "build one on disk with `stepopsd retriever build`"
                )
            if passage.id in ids:
                raise ValueError(f"passage {row}: the id {passage.id!r} is already taken by an earlier one")
            ids.add(passage.id)
            digest.update(repr((passage.id, passage.title, passage.text)).encode())
            found = words(f"{passage.title} {passage.text}")
            lengths.append(len(found))
            for word, count in Counter(found).items():
                rows.setdefault(word, []).append(row)
                counts.setdefault(word, []).append(count)
            self._passages.append(passage)
        if not self._passages:
            raise ValueError("the corpus holds no passage")
        self.fingerprint = f"exact-{digest.hexdigest()[:16]}"
        mean = max(sum(lengths) / len(lengths), 1e-9)
        norms = length_norm(np.array(lengths), mean)  # (passages,)
        self._postings = {  # word -> rows (n,) int32, contributions (n,) float64
            word: (
                np.array(found, np.int32),
                contribution(np.array(counts[word]), norms[found], len(found), len(lengths)),
            )
            for word, found in rows.items()
        }

    @classmethod
    def from_file(cls, path: str | Path) -> ExactIndex:
        """Read a ``.jsonl`` or ``.jsonl.gz`` corpus. Raises FileNotFoundError, CorpusError or ValueError."""
        return cls(read_passages(path))

    def __len__(self) -> int:
        return len(self._passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """See ``Retriever.search``."""
        check_request(queries, k)
        return [self._search(query, k) for query in queries]

    def _search(self, query: str, k: int) -> list[Passage]:
        found = [self._postings[w] for w in query_words(query, self._max_query_words) if w in self._postings]
        if not found:
            return []
        rows, inverse = np.unique(np.concatenate([rows for rows, _ in found]), return_inverse=True)
        scores = np.bincount(inverse, np.concatenate([scores for _, scores in found]))  # (rows,)
        best = np.lexsort((rows, -scores))[:k]
        return [replace(self._passages[rows[i]], score=float(scores[i])) for i in best]
