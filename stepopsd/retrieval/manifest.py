"""What an index folder says about itself: which corpus it was made from, and that it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stepopsd.retrieval.corpus import open_corpus

FORMAT = 2
NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """Written last, so that a folder which has one holds a whole index.

    Attributes:
        kind: ``tantivy`` or ``faiss``.
        passages: How many passages it holds; at least 1.
        skipped: Malformed rows left out of it.
        corpus: File name of the corpus.
        corpus_sha256: Of the corpus's bytes, decompressed.
        versions: Of the packages that wrote it.
        settings: What else decides the answers: how many words a tantivy index holds, the encoder of a dense one.
        encoder: Where the encoder of a dense index was; which one it is, the settings say.
        format: Of the folder; other numbers are refused.
    """

    kind: str
    passages: int
    skipped: int
    corpus: str
    corpus_sha256: str
    versions: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    encoder: str = ""
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """Names the answers that an index gives: kind, corpus, rows left out and settings."""
        about = json.dumps([self.kind, self.corpus_sha256, self.passages, self.settings, self.format], sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check ``folder/manifest.json``.

    Raises:
        FileNotFoundError: no such folder, or no finished index in it.
        ValueError: the file is damaged, of another format, or the index is empty.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        unfinished = " (a build there has not finished: run the same `stepopsd retriever build` again)"
        raise FileNotFoundError(
            f"no index in {folder}: {NAME} is missing{unfinished if (path.parent / 'build.json').exists() else ''}; "
            "make one with `stepopsd retriever build CORPUS --out FOLDER`"
        )
    try:
        stored = json.loads(path.read_text())
        found = stored.get("format")
        if found != FORMAT:
            raise ValueError(f"its format is {found!r}, this version reads {FORMAT}: build the index anew")
        manifest = Manifest(**stored)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): build the index anew") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if manifest.passages < 1:
        raise ValueError(f"the index in {folder} is empty")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest at once or not at all."""
    write_json(folder / NAME, asdict(manifest))


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file so that a crash leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("w") as out:
        json.dump(content, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)


def corpus_sha256(path: str | Path, on_bytes: Callable[[bytes], None] | None = None) -> str:
    """SHA-256 of a corpus file's bytes, decompressed where its name ends in ``.gz``."""
    digest = hashlib.sha256()
    with open_corpus(Path(path)) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if on_bytes:
                on_bytes(block)
    return digest.hexdigest()


def check_corpus(folder: str | Path, corpus: str | Path) -> None:
    """Raise ValueError unless ``corpus`` is what the index in ``folder`` was made from."""
    manifest, found = read_manifest(folder), corpus_sha256(corpus)
    if found != manifest.corpus_sha256:
        raise ValueError(
            f"the index in {folder} was made from another corpus than {corpus}: sha256 "
            f"{manifest.corpus_sha256[:16]}… ({manifest.corpus}) against {found[:16]}…; build an index of this one"
        )
