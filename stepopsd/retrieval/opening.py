"""From what a configuration says to a retriever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepopsd.retrieval.base import Passage, Retriever
from stepopsd.retrieval.exact import ExactIndex


def open_retriever(
    spec: str | Path | Sequence[Passage],
    *,
    corpus: str | Path | None = None,
    encoder: str | Path | None = None,
    device: str = "cpu",
    timeout_s: float = 10.0,
    deadline_s: float = 60.0,
) -> Retriever:
    """A retriever that is ready to answer; what cannot work fails here, before training starts.

    Args:
        spec: What to search:

            - a folder made by ``stepopsd retriever build``: BM25 with tantivy, or FAISS;
            - ``http://host:port``, several of them separated by commas: servers of the Search-R1 API, asked in turn;
            - a ``.jsonl`` or ``.jsonl.gz`` corpus, or a list of passages: exact BM25 in memory, at most 200,000
              passages, a second for about 30,000.
        corpus: Refuse an index that was not made from this file.
        encoder: Of a dense index, where it is not where it was when the index was built; the same weights are required.
        device: Of that encoder.
        timeout_s: For one request to a server.
        deadline_s: For one ``search`` at a server, tries and pauses included.

    Raises:
        FileNotFoundError: no such file or no index there.
        ValueError: an unknown form; a malformed, empty or other corpus; a damaged index.
        RetrieverError: a server that is down, speaks neither dialect or differs from the others.
        ImportError: what the form needs is not installed.

    Example:
        >>> open_retriever([Passage("0", "Mercury", "closest to the sun")]).search(["sun"], k=1)[0][0].id
        '0'
    """
    folder = Path(spec) if isinstance(spec, (str, Path)) else None
    if corpus is not None:
        from stepopsd.retrieval.manifest import check_corpus

        if folder is None or not folder.is_dir():
            given = "a list of passages" if folder is None else f"the retriever {str(spec)!r}"
            raise ValueError(f"corpus can be compared with an index folder only, got {given}")
        check_corpus(folder, corpus)
    if folder is None:
        return ExactIndex(spec)  # type: ignore[arg-type]
    if str(spec).startswith(("http://", "https://")):
        from stepopsd.retrieval.client import HttpRetriever

        urls = [url.strip() for url in str(spec).split(",") if url.strip()]
        return HttpRetriever(urls, timeout_s=timeout_s, deadline_s=deadline_s)
    if folder.name.endswith((".jsonl", ".jsonl.gz")):
        return ExactIndex.from_file(folder)
    if folder.is_dir():
        return open_index(folder, encoder=encoder, device=device)
    raise ValueError(
        "retriever must be an index folder, http://host:port, a .jsonl or .jsonl.gz corpus or a list of passages, "
        f"got {str(spec)!r}"
    )


def open_index(folder: str | Path, *, encoder: str | Path | None = None, device: str = "cpu") -> Retriever:
    """Open an index folder by its kind. Raises FileNotFoundError, ValueError or ImportError."""
    from stepopsd.retrieval.lexical import TantivyIndex
    from stepopsd.retrieval.manifest import read_manifest

    kind = read_manifest(folder).kind
    if kind == "tantivy":
        return TantivyIndex(folder)
    if kind == "faiss":
        from stepopsd.retrieval.dense import FaissIndex

        return FaissIndex(folder, encoder=encoder, device=device)
    raise ValueError(f"the index in {folder} is of the unknown kind {kind!r}")
