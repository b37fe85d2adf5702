"""Building a tantivy index: committed as it goes, continued after an interruption, reproducible."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from stepopsd.retrieval.base import Passage
from stepopsd.retrieval.corpus import CorpusError, open_corpus
from stepopsd.retrieval.intake import STATE, Intake, Progress, begins, finished_index
from stepopsd.retrieval.lexical import schema, tantivy
from stepopsd.retrieval.manifest import Manifest, write_json, write_manifest
from stepopsd.retrieval.tokens import words

COMMIT_EVERY = 100_000  #: passages; what an interruption can cost


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
    _check_options(memory_mb, threads, commit_every)
    if (finished := finished_index(folder, corpus, "tantivy")) is not None:
        return finished
    package = tantivy()
    open_corpus(corpus).close()
    with _Building(package, folder, memory_mb, threads) as building:
        intake = Intake(
            corpus, folder, done=building.rows, sha256=building.sha256, on_bad=on_bad if skip_bad else None
        )
        for passage in intake:
            if intake.is_new:
                building.add(passage)
                if intake.rows % commit_every == 0:
                    building.commit(intake.sha256)
            if intake.rows % 10_000 == 0:
                on_progress(intake.progress)
        if intake.rows > building.committed:
            building.commit(intake.sha256)
    on_progress(intake.progress)
    versions = {name: importlib.metadata.version(name) for name in ("tantivy", "stepopsd")}
    settings = {"words": building.words}
    manifest = Manifest("tantivy", intake.rows, intake.skipped, corpus.name, intake.sha256, versions, settings)
    write_manifest(folder, manifest)
    (folder / STATE).unlink()
    return manifest


def _check_options(memory_mb: int, threads: int, commit_every: int) -> None:
    if not 1 <= threads <= 8:
        raise ValueError(f"threads must lie in [1, 8], got {threads}")
    if not max(16, 15 * threads) <= memory_mb <= 4096:
        raise ValueError(f"memory_mb must lie in [{max(16, 15 * threads)}, 4096], got {memory_mb}")
    if commit_every < 1:
        raise ValueError(f"commit_every must be at least 1, got {commit_every}")


class _Commit(NamedTuple):
    """Passages and words that were committed, and the digest of the corpus so far."""

    rows: int
    words: int
    sha256: str


class _Building:
    """tantivy's files of an unfinished build; inside a ``with``, what is not committed when it breaks off is gone."""

    def __init__(self, package: Any, folder: Path, memory_mb: int, threads: int) -> None:
        self._package, self._folder, self._state = package, folder, _open_state(folder)
        (folder / "tantivy").mkdir(parents=True, exist_ok=True)
        index = package.Index(schema(), path=str(folder / "tantivy"), sort_by_field="row")
        self.rows = self.committed = index.searcher().num_docs
        noted = next((commit for commit in self._state if commit.rows == self.rows), _Commit(0, 0, ""))
        if self.rows != noted.rows:
            raise ValueError(
                f"{folder} is damaged: {self.rows} passages were committed, {STATE} does not know of them; delete it"
            )
        self.words, self.sha256 = noted.words, noted.sha256
        self._writer = index.writer(memory_mb << 20, threads)

    def __enter__(self) -> _Building:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._writer.rollback()  # leaving the writer to itself could commit what nothing is known of
        finally:
            self._writer.wait_merging_threads()

    def add(self, passage: Passage) -> None:
        """Index the next passage."""
        found = words(f"{passage.title} {passage.text}")
        document = self._package.Document()
        document.add_unsigned("row", self.rows)
        document.add_bytes("passage", json.dumps([passage.id, passage.title, passage.text]).encode())
        document.add_text("words", " ".join(found))
        self._writer.add_document(document)
        self.rows += 1
        self.words += len(found)

    def commit(self, sha256: str) -> None:
        """Keep what was added; ``sha256`` is that of the corpus up to here."""
        _commit(self._writer, self._folder, self._state, _Commit(self.rows, self.words, sha256))
        self.committed = self.rows


def _open_state(folder: Path) -> list[_Commit]:
    """Every commit that was made or about to be made."""
    if begins(folder):
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
