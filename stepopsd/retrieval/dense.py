"""Dense retrieval: the inner products of a query's vector with those of the passages, found by FAISS."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepopsd.retrieval.base import MAX_QUERY_WORDS, Passage, RetrieverError, check_request
from stepopsd.retrieval.encoder import DENSE_HINT, Encoder, EncoderOptions
from stepopsd.retrieval.manifest import read_manifest
from stepopsd.retrieval.wire import clip_query

INDEX, PASSAGES, OFFSETS = "vectors.faiss", "passages.jsonl", "offsets.u64"
_SPARE = 8  # candidates beside the k best, so that equal ones at the end come in corpus order
_DECIMALS = 5  # of a score: how a batch is padded does not reach them


def faiss() -> Any:
    """The package, or ImportError that says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(f"a dense index needs faiss: {DENSE_HINT}") from error
    return faiss


class FaissIndex:
    """A folder made by ``stepopsd retriever build --kind dense``. Vectors and passages are mapped, not read.

    Scores are cosines, to five decimals. With the kind "Flat" all passages are compared, so answers are exact; other
    kinds of FAISS trade answers for speed.

    Args:
        folder: The index.
        encoder: Where the encoder is, if not where it was; it must hold the same weights.
        device: Of the encoder; FAISS works on the CPU.
        max_query_words: Words of a query that count.

    Raises:
        FileNotFoundError: no finished index there.
        ValueError: it is damaged or empty, or the encoder is another one than it was built with.
        ImportError: faiss or transformers is not installed.

    Example:
        >>> FaissIndex("index").search(["who discovered radium"], k=3)  # doctest: +SKIP

    Source: Karpukhin et al. 2020 (arXiv 2004.04906), E5 (arXiv 2212.03533), FAISS (arXiv 2401.08281).
    """

    preferred_batch = 128  #: queries that the server passes at a time: one matrix product costs less than many

    def __init__(
        self,
        folder: str | Path,
        *,
        encoder: str | Path | None = None,
        device: str = "cpu",
        max_query_words: int = MAX_QUERY_WORDS,
    ) -> None:
        package, folder = faiss(), Path(folder)
        self.manifest = read_manifest(folder)
        if self.manifest.kind != "faiss":
            raise ValueError(f"the index in {folder} is a {self.manifest.kind} index, not a faiss one")
        self.fingerprint = self.manifest.fingerprint
        self._max_query_words = max_query_words
        settings = self.manifest.settings
        try:
            mapped = getattr(package, "IO_FLAG_MMAP_IFC", package.IO_FLAG_MMAP)  # the first maps flat vectors too
            self._index = package.read_index(str(folder / INDEX), mapped)
            self._offsets = np.memmap(folder / OFFSETS, np.uint64, "r")  # (passages + 1,), bytes
            self._file = os.open(folder / PASSAGES, os.O_RDONLY)
            options = EncoderOptions(**settings["encoder"])
            if settings["nprobe"]:
                package.extract_index_ivf(self._index).nprobe = settings["nprobe"]
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the index in {folder} cannot be opened ({error}): build it anew") from None
        held = {self._index.ntotal, len(self._offsets) - 1}
        if held != {len(self)} or os.fstat(self._file).st_size != self._offsets[-1]:
            raise ValueError(
                f"the index in {folder} does not hold the {len(self)} passages that its manifest promises: "
                "build it anew"
            )
        self._encoder = Encoder(str(encoder or self.manifest.encoder), options=options, device=device)
        if self._encoder.sha256 != settings["encoder_sha256"]:
            raise ValueError(
                f"the index in {folder} was made with another encoder than {self._encoder.path!r}: sha256 "
                f"{settings['encoder_sha256'][:16]}… ({self.manifest.encoder}) against {self._encoder.sha256[:16]}…"
            )

    def __len__(self) -> int:
        return self.manifest.passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """See ``Retriever.search``. A query without words finds nothing; every other one finds k passages."""
        check_request(queries, k)
        clipped = [clip_query(query, self._max_query_words) for query in queries]
        asked = [query for query in dict.fromkeys(clipped) if query]
        found: dict[str, list[Passage]] = {"": []}
        try:
            if asked:
                scores, rows = self._index.search(self._encoder.queries(asked), min(k + _SPARE, len(self)))
                found |= {
                    query: self._best(scores[at].tolist(), rows[at].tolist(), k) for at, query in enumerate(asked)
                }
        except (RuntimeError, ValueError, OSError) as error:  # out of memory, damaged or vanished files
            raise RetrieverError(f"the dense index failed: {error}") from error
        return [list(found[query]) for query in clipped]

    def _best(self, scores: list[float], rows: list[int], k: int) -> list[Passage]:
        best = sorted((-round(score, _DECIMALS), row) for score, row in zip(scores, rows, strict=True) if row >= 0)
        return [self._passage(row, -score) for score, row in best[:k]]

    def _passage(self, row: int, score: float) -> Passage:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        key, title, text = json.loads(os.pread(self._file, end - start, start))
        return Passage(key, title, text, score)

    def __del__(self) -> None:
        if (file := getattr(self, "_file", None)) is not None:
            os.close(file)
