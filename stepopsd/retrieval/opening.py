"""From what a configuration says to a retriever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepopsd.retrieval.base import Passage, Retriever
from stepopsd.retrieval.exact import ExactIndex


def open_retriever(spec: str | Path | Sequence[Passage]) -> Retriever:
    """A retriever that is ready to answer; what cannot work fails here, before training starts.

    Args:
        spec: One of
            a list of passages, or the path of a ``.jsonl`` or ``.jsonl.gz`` corpus (indexed in memory, exact BM25, at
            most 200,000 passages; a second per 10,000).

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown form, a malformed or empty corpus.

    Example:
        >>> open_retriever([Passage("0", "Mercury", "closest to the sun")]).search(["sun"], k=1)[0][0].id
        '0'
    """
    if not isinstance(spec, (str, Path)):
        return ExactIndex(spec)
    path = Path(spec)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return ExactIndex.from_file(path)
    raise ValueError(f"retriever must be a .jsonl or .jsonl.gz corpus or a list of passages, got {str(spec)!r}")
