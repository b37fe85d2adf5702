"""Building a tantivy index: committed as it goes, continued after an interruption, reproducible."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stepopsd.retrieval.corpus import CorpusError, open_corpus, read_passages
from stepopsd.retrieval.lexical import schema, tantivy
from stepopsd.retrieval.manifest import NAME, Manifest, check_corpus, read_manifest, write_json, write_manifest
from stepopsd.retrieval.tokens import words

COMMIT_EVERY = 100_000  #: passages; what an interruption can cost
STATE = "build.json"


@dataclass(frozen=True)
class Progress:
    """Passages indexed and malformed rows left out so far, and bytes of the corpus read."""

    passages: int
    skipped: int
    read_bytes: int


def build_index(
    corpus: str | Path,
    folder: str | Path,
    *,
    skip_bad: bool = False,
    memory_mb: int = 256,
    threads: int = 1,
    commit_every: int = COMMIT_EVERY,
    on_bad: Callable[[CorpusError], None] = lambda error: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Manifest:
    """Index a corpus into ``folder``. Called again after an interruption, it goes on from the last commit.

    Args:
        corpus: ``.jsonl`` or ``.jsonl.gz``.
        folder: New or empty, or holding an unfinished build of the same corpus. A finished index of the same corpus is
            left as it is.
        skip_bad: Leave malformed rows out instead of stopping at the first.
        memory_mb: tantivy's buffer, in [16, 4096]; shared by the threads, 15 MB each at least.
        threads: tantivy's own, in [1, 8].
        commit_every: Passages between commits.
        on_bad: Told of every row left out.
        on_progress: Told about every 10,000 passages.

    Raises:
        FileNotFoundError: no such corpus.
        CorpusError: a malformed row, ``file:line: what is wrong``; what was committed stays.
        ValueError: an argument out of range, a corpus without passages, or a folder that holds something else: an index
            or an unfinished build of another corpus, or files of someone else's.
        ImportError: tantivy is not installed.
    """
    corpus, folder = Path(corpus), Path(folder)
    if not 1 <= threads <= 8:
        raise ValueError(f"threads must lie in [1, 8], got {threads}")
    if not max(16, 15 * threads) <= memory_mb <= 4096:
        raise ValueError(f"memory_mb must lie in [{max(16, 15 * threads)}, 4096], got {memory_mb}")
    if commit_every < 1:
        raise ValueError(f"commit_every must be at least 1, got {commit_every}")
    if (folder / NAME).exists():
        check_corpus(folder, corpus)
        if (manifest := read_manifest(folder)).kind != "tantivy":
            raise ValueError(f"{folder} holds a finished {manifest.kind} index: choose another folder")
        return manifest
    package = tantivy()
    open_corpus(corpus).close()
    state = _open_state(folder)
    (folder / "tantivy").mkdir(parents=True, exist_ok=True)
    index = package.Index(schema(), path=str(folder / "tantivy"), sort_by_field="row")
    done = index.searcher().num_docs
    noted = next((commit for commit in state if commit.rows == done), None)
    if done and noted is None:
        raise ValueError(
            f"{folder} is damaged: {done} passages were committed, {STATE} does not know of them; delete it"
        )

    digest, read, skipped, rows, total = hashlib.sha256(), 0, 0, 0, 0

    def note(line: bytes) -> None:
        nonlocal read
        digest.update(line)
        read += len(line)

    def leave_out(error: CorpusError) -> None:
        nonlocal skipped
        skipped += 1
        on_bad(error)

    writer = index.writer(memory_mb << 20, threads)
    try:
        for passage in read_passages(corpus, on_bad=leave_out if skip_bad else None, on_bytes=note):
            rows += 1
            if rows > done:
                document = package.Document()
                document.add_unsigned("row", rows - 1)
                document.add_bytes("passage", json.dumps([passage.id, passage.title, passage.text]).encode())
                found = words(f"{passage.title} {passage.text}")
                total += len(found)
                document.add_text("words", " ".join(found))
                writer.add_document(document)
                if rows % commit_every == 0:
                    _commit(writer, folder, state, _Commit(rows, total, digest.hexdigest()))
            elif rows == done and noted is not None:
                if digest.hexdigest() != noted.sha256:
                    raise ValueError(
                        f"{corpus} is not the corpus that the unfinished build in {folder} began with: its first "
                        f"{done} passages differ; use another folder or delete this one"
                    )
                total = noted.words
            if rows % 10_000 == 0:
                on_progress(Progress(rows, skipped, read))
        if not rows:
            raise ValueError(f"{corpus} holds no passage")
        if rows < done:
            raise ValueError(
                f"{corpus} has {rows} passages, fewer than the {done} that are indexed in {folder} already"
            )
        if rows > done:
            _commit(writer, folder, state, _Commit(rows, total, digest.hexdigest()))
    except BaseException:
        writer.rollback()  # to the last commit; leaving the writer to itself could commit what nothing is known of
        raise
    finally:
        writer.wait_merging_threads()
    on_progress(Progress(rows, skipped, read))
    versions = {name: importlib.metadata.version(name) for name in ("tantivy", "stepopsd")}
    manifest = Manifest("tantivy", rows, skipped, corpus.name, digest.hexdigest(), versions, {"words": total})
    write_manifest(folder, manifest)
    (folder / STATE).unlink()
    return manifest


class _Commit(NamedTuple):
    """Passages and words that were committed, and the digest of the corpus so far."""

    rows: int
    words: int
    sha256: str


def _open_state(folder: Path) -> list[_Commit]:
    """Every commit that was made or about to be made."""
    if not (folder / STATE).exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no index: choose a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STATE, [])
    try:
        stored = json.loads((folder / STATE).read_text())
        if not isinstance(stored, dict):
            return [_Commit(int(rows), int(total), str(sha)) for rows, total, sha in stored]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / STATE} is damaged ({error}): delete the folder") from None
    raise ValueError(f"the unfinished build in {folder} is one of a dense index: choose another folder")


def _commit(writer: Any, folder: Path, state: list[_Commit], new: _Commit) -> None:
    # The note goes first: a crash in between leaves a note without a commit, which nobody looks up.
    state.append(new)
    write_json(folder / STATE, state)
    writer.commit()
