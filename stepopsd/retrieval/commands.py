"""What ``stepopsd retriever`` runs: build, serve, search, probe. Plain functions; the command line wraps them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Literal

from stepopsd.retrieval.base import Passage
from stepopsd.retrieval.building import build_index
from stepopsd.retrieval.corpus import CorpusError
from stepopsd.retrieval.dense_building import DenseOptions, build_dense_index
from stepopsd.retrieval.intake import Progress
from stepopsd.retrieval.manifest import check_corpus
from stepopsd.retrieval.opening import open_index, open_retriever
from stepopsd.retrieval.server import ServerLimits, serve


def build(
    corpus: Path,
    /,
    *,
    out: Path,
    kind: Literal["bm25", "dense"] = "bm25",
    skip_bad: bool = False,
    memory_mb: int = 256,
    threads: int = 1,
    encoder: str = "",
    dense: DenseOptions = DenseOptions(),  # noqa: B008 (frozen)
) -> None:
    """Index a corpus with tantivy, or with an encoder and FAISS; run again after an interruption, it goes on.

    Args:
        corpus: .jsonl or .jsonl.gz with {"id", "contents"} or {"id", "title", "text"} rows.
        out: Folder of the index.
        kind: BM25 or dense vectors.
        skip_bad: Report malformed rows and leave them out, instead of stopping at the first.
        memory_mb: Buffer of tantivy's writer.
        threads: Of tantivy's writer.
        encoder: Of a dense index: folder or hub name of a model, e.g. intfloat/e5-base-v2.
        dense: How a dense index is made.
    """
    if (kind == "dense") != bool(encoder):
        raise ValueError(f"encoder is needed for kind dense and for no other, got {encoder!r} for {kind}")
    total, started = (corpus.stat().st_size if corpus.is_file() else 0), time.monotonic()
    begun: list[Progress] = []

    def show(progress: Progress) -> None:
        begun.append(progress)
        # A gzip's size says nothing about the bytes in it.
        share = f", {progress.read_bytes / total:.0%}" if total and corpus.suffix != ".gz" else ""
        rate = progress.passages / max(time.monotonic() - started, 1e-9)
        end = "\r" if sys.stderr.isatty() else "\n"
        if sys.stderr.isatty() or kind == "dense" or progress.passages % 100_000 == 0:
            print(f"{progress.passages:,} passages{share}, {rate:,.0f} a second", end=end, file=sys.stderr, flush=True)

    def say(error: CorpusError) -> None:
        print(f"left out {error}", file=sys.stderr)

    if kind == "dense":
        manifest = build_dense_index(
            corpus, out, encoder, dense, skip_bad=skip_bad, on_progress=show, on_bad=say
        )  # fmt: skip
    else:
        manifest = build_index(
            corpus, out, skip_bad=skip_bad, memory_mb=memory_mb, threads=threads, on_progress=show, on_bad=say
        )  # fmt: skip
    left_out = f", {manifest.skipped} malformed rows left out" if manifest.skipped else ""
    state = "made" if begun else "is there already"
    print(f"{out} {state}: {manifest.passages:,} passages{left_out}, {manifest.fingerprint}")


def serve_index(
    index: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    topk: int = 3,
    corpus: Path | None = None,
    threads: int | None = None,
    encoder: str = "",
    device: str = "cpu",
    limits: ServerLimits = ServerLimits(),  # noqa: B008 (frozen)
) -> None:
    """Serve an index over HTTP: POST /retrieve in both dialects of the Search-R1 API, GET /health.

    Args:
        index: Folder made by `stepopsd retriever build`.
        host: Loopback by default. There is no authentication: choose another address only in a network that you trust.
        port: 0 for any free one.
        topk: Passages per query where a request names no number.
        corpus: Refuse to serve unless the index was made from this file.
        threads: Searches at a time; as many as cores by default.
        encoder: Of a dense index, where it is not where it was when the index was built.
        device: Where the encoder of a dense index runs.
        limits: Bounds of a request.
    """
    if corpus is not None:
        check_corpus(index, corpus)
    retriever = open_index(index, encoder=encoder or None, device=device)
    if host not in ("127.0.0.1", "::1", "localhost"):
        print(f"anyone who reaches {host} can search; there is no authentication", file=sys.stderr)
    serve(
        retriever, host=host, port=port, topk=topk, threads=threads, limits=limits,
        on_ready=lambda url: print(f"serving {index} at {url}", flush=True),
    )  # fmt: skip


def search(retriever: str, query: str, /, *, k: int = 3) -> list[Passage]:
    """Print what a retriever finds: an index folder, a corpus, or http://host:port.

    Args:
        retriever: As `env.retriever` in a run's configuration.
        query: The question.
        k: Passages.
    """
    [passages] = open_retriever(retriever).search([query], k)
    for passage in passages:
        print(f"{passage.score:8.4f}  {passage.id}  {passage.title}\n          {passage.text}")
    if not passages:
        print("no passage shares a word with the query")
    return passages


def probe(urls: str, /) -> None:
    """Ask servers for their dialect, as training does before it starts.

    Args:
        urls: http://host:port, several separated by commas.
    """
    from stepopsd.retrieval.client import HttpRetriever

    retriever = HttpRetriever([url.strip() for url in urls.split(",") if url.strip()])
    for url, dialect in retriever.dialects.items():
        print(f'{url}: {{"{dialect.value}": …}}')
    print(f"fingerprint {retriever.fingerprint}; slowest request {retriever.statistics()['p99_s'] * 1e3:.0f} ms")
    retriever.close()
