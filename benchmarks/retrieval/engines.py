"""The engines that are compared, each behind the same three calls: build a folder, open it, answer queries."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stepopsd.retrieval.corpus import read_passages
from stepopsd.retrieval.tokens import query_words, words

DIMENSION = 768  # of E5-base
BLOCK = 10_000


class Engine(Protocol):
    """Opened on a folder that ``build`` filled; ``search`` returns passage ids, best first."""

    @staticmethod
    def build(corpus: Path, folder: Path) -> None: ...

    def __init__(self, folder: Path) -> None: ...

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]: ...


class Ours:
    """This package's index on disk; answers come with title and text."""

    @staticmethod
    def build(corpus: Path, folder: Path) -> None:
        from stepopsd.retrieval.building import build_index

        build_index(corpus, folder)

    def __init__(self, folder: Path) -> None:
        from stepopsd.retrieval.lexical import TantivyIndex

        self._index = TantivyIndex(folder)

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]:
        return [[passage.id for passage in found] for found in self._index.search(queries, k)]


class PlainTantivy(Ours):
    """The same files asked with one union of all words, as a query parser would; stored passages are read too."""

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]:
        index, found = self._index, []
        for query in queries:
            known = [term for word in query_words(query, 64) if (term := index._known(word))]
            hits = index._searcher.search(index._plan(known, len(known)), k).hits if known else []
            found.append([index._passage(address, []).id for _, address in hits])
        return found


class Bm25s:
    """bm25s on numpy with the same words and constants; rows only."""

    @staticmethod
    def build(corpus: Path, folder: Path) -> None:
        import bm25s

        known: dict[str, int] = {}
        ids = [
            [known.setdefault(word, len(known)) for word in words(f"{passage.title} {passage.text}")]
            for passage in read_passages(corpus)
        ]
        index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
        index.index((ids, known), show_progress=False)
        index.save(str(folder))

    def __init__(self, folder: Path) -> None:
        import bm25s

        self._index = bm25s.BM25.load(str(folder), mmap=True)
        self._known = self._index.vocab_dict

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]:
        asked = [[self._known[w] for w in query_words(query, 64) if w in self._known] for query in queries]
        rows, _ = self._index.retrieve(asked, k=k, show_progress=False)
        return [[str(row) for row in found] for found in rows.tolist()]


class Fts5:
    """SQLite's full-text table with the same words, any of them, by its BM25; rows only."""

    @staticmethod
    def build(corpus: Path, folder: Path) -> None:
        connection = sqlite3.connect(folder / "fts.sqlite")
        connection.execute("create virtual table passages using fts5(words, content='')")
        rows = (
            (row, " ".join(words(f"{passage.title} {passage.text}")))
            for row, passage in enumerate(read_passages(corpus))
        )
        connection.executemany("insert into passages(rowid, words) values (?, ?)", rows)
        connection.execute("insert into passages(passages) values ('optimize')")
        connection.commit()
        connection.close()

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "fts.sqlite")

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]:
        ask = "select rowid from passages where passages match ? order by rank limit ?"
        found = []
        for query in queries:
            match = " OR ".join(f'"{word}"' for word in query_words(query, 64))
            found.append([str(row) for (row,) in self._connection.execute(ask, (match, k))] if match else [])
        return found


class FaissFlat:
    """Inner products with every vector, without an encoder: random unit vectors, so only its cost means anything."""

    @staticmethod
    def build(corpus: Path, folder: Path) -> None:
        import faiss

        index, draw = faiss.IndexFlatIP(DIMENSION), np.random.default_rng(0)
        passages = sum(1 for _ in read_passages(corpus))
        for first in range(0, passages, BLOCK):
            index.add(_unit(draw, min(BLOCK, passages - first)))
        faiss.write_index(index, str(folder / "flat.faiss"))

    def __init__(self, folder: Path) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self._index = faiss.read_index(str(folder / "flat.faiss"), faiss.IO_FLAG_MMAP)

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]:
        asked = _unit(np.random.default_rng(abs(hash(queries[0]))), len(queries))
        return [[str(row) for row in found] for found in self._index.search(asked, k)[1].tolist()]


ENGINES: dict[str, Any] = {
    "stepopsd": Ours,
    "tantivy, plain union": PlainTantivy,
    "bm25s": Bm25s,
    "SQLite FTS5": Fts5,
    "FAISS flat": FaissFlat,
}
FILES_OF = {"tantivy, plain union": "stepopsd"}  # engine -> engine whose folder it reads


def _unit(draw: np.random.Generator, count: int) -> np.ndarray:
    vectors = draw.standard_normal((count, DIMENSION), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
