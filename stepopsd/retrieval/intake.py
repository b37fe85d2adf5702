"""What builds of every kind share: a folder that is theirs, and a corpus that is read on from where they stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stepopsd.retrieval.base import Passage
from stepopsd.retrieval.corpus import CorpusError, read_passages
from stepopsd.retrieval.manifest import NAME, Manifest, check_corpus, read_manifest

STATE = "build.json"


@dataclass(frozen=True)
class Progress:
    """Passages indexed and malformed rows left out so far, and bytes of the corpus read."""

    passages: int
    skipped: int
    read_bytes: int


def finished_index(folder: Path, corpus: Path, kind: str) -> Manifest | None:
    """The manifest of a finished index, None where there is none.

    Raises:
        ValueError: It was made from another corpus, or is of another kind.
    """
    if not (folder / NAME).exists():
        return None
    check_corpus(folder, corpus)
    if (manifest := read_manifest(folder)).kind != kind:
        raise ValueError(f"{folder} holds a finished {manifest.kind} index: choose another folder")
    return manifest


def begins(folder: Path) -> bool:
    """Whether no build has begun in ``folder``, which then is there and empty.

    Raises:
        ValueError: It holds files of someone else's.
    """
    if (folder / STATE).exists():
        return False
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no index: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    return True


class Intake:
    """A corpus, passage by passage, with what has to be known of it at every commit.

    Args:
        corpus: ``.jsonl`` or ``.jsonl.gz``.
        folder: Of the build, for messages.
        done: Passages that an earlier build of it has committed.
        sha256: ``Intake.sha256`` behind these.
        on_bad: Told of every malformed row, which is then left out; None raises at the first.

    Attributes:
        rows: Passages so far.
        skipped: Malformed rows left out so far.
        read_bytes: Bytes read so far, decompressed.
    """

    def __init__(
        self, corpus: Path, folder: Path, *, done: int, sha256: str, on_bad: Callable[[CorpusError], None] | None
    ) -> None:
        self.rows = self.skipped = self.read_bytes = 0
        self._corpus, self._folder, self._done, self._expected, self._on_bad = corpus, folder, done, sha256, on_bad
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of what was read so far."""
        return self._digest.hexdigest()

    @property
    def is_new(self) -> bool:
        """Whether the latest passage lies behind those that are committed."""
        return self.rows > self._done

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.rows, self.skipped, self.read_bytes)

    def __iter__(self) -> Iterator[Passage]:
        """Every passage, committed ones included.

        Raises:
            CorpusError: A malformed row, without ``on_bad``.
            ValueError: The corpus begins otherwise than the committed passages did, or holds fewer, or none at all.
        """
        on_bad = None if self._on_bad is None else self._leave_out
        for passage in read_passages(self._corpus, on_bad=on_bad, on_bytes=self._note):
            self.rows += 1
            if self.rows == self._done and self.sha256 != self._expected:
                raise ValueError(
                    f"{self._corpus} is not the corpus that the unfinished build in {self._folder} began with: its "
                    f"first {self._done} passages differ; use another folder or delete this one"
                )
            yield passage
        if not self.rows:
            raise ValueError(f"{self._corpus} holds no passage")
        if self.rows < self._done:
            raise ValueError(
                f"{self._corpus} has {self.rows} passages, fewer than the {self._done} that are indexed in "
                f"{self._folder} already"
            )

    def _note(self, line: bytes) -> None:
        self._digest.update(line)
        self.read_bytes += len(line)

    def _leave_out(self, error: CorpusError) -> None:
        self.skipped += 1
        if self._on_bad is not None:
            self._on_bad(error)
