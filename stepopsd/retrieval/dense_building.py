"""Building a dense index: passages are encoded in blocks and kept, so that an interruption costs one block."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stepopsd.retrieval.base import Passage
from stepopsd.retrieval.corpus import CorpusError, open_corpus
from stepopsd.retrieval.dense import INDEX, OFFSETS, PASSAGES, faiss
from stepopsd.retrieval.encoder import Encoder, EncoderOptions
from stepopsd.retrieval.intake import STATE, Intake, Progress, begins, finished_index
from stepopsd.retrieval.manifest import Manifest, write_json, write_manifest

VECTORS = "vectors.f32"
_TRAINED_ON = 262_144  # vectors at most, evenly spread over the corpus
_BLOCK = 65_536  # vectors that are put into the index at a time


@dataclass(frozen=True)
class DenseOptions:
    """How a dense index is made.

    Attributes:
        encoder: Prefixes, pooling, length.
        device: Where the encoder runs.
        batch: Texts that it takes at a time.
        commit_every: Passages between commits; what an interruption can cost.
        faiss: Kind of index in FAISS's words: "Flat" compares everything, "IVF4096,SQ8" is for tens of millions.
        nprobe: Lists that a query looks into, for IVF kinds; 0 elsewhere.
    """

    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    device: str = "cpu"
    batch: int = 64
    commit_every: int = 4096
    faiss: str = "Flat"
    nprobe: int = 0

    def __post_init__(self) -> None:
        if self.commit_every < 1:
            raise ValueError(f"commit_every must be at least 1, got {self.commit_every}")
        if (self.nprobe > 0) != self.faiss.startswith("IVF"):
            raise ValueError(
                f"nprobe must be at least 1 for kinds of index that begin with IVF and 0 for others, got {self.nprobe} "
                f"for {self.faiss!r}"
            )


def build_dense_index(
    corpus: str | Path,
    folder: str | Path,
    encoder: str | Path,
    options: DenseOptions | None = None,
    *,
    skip_bad: bool = False,
    on_bad: Callable[[CorpusError], None] = lambda error: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Manifest:
    """Encode a corpus into ``folder``. Called again after an interruption, it goes on from the last commit.

    Needs disk for the vectors twice while it ends, and memory for the finished FAISS index.

    Args:
        corpus: ``.jsonl`` or ``.jsonl.gz``.
        folder: New or empty, or holding an unfinished build of the same corpus with the same encoder and options. A
            finished index of these is left as it is.
        encoder: Folder of a model with a tokenizer, or a name on the hub.
        options: See ``DenseOptions``.
        skip_bad: Leave malformed rows out instead of stopping at the first.
        on_bad: Told of every row left out.
        on_progress: Told after every commit.

    Raises:
        FileNotFoundError: no such corpus.
        CorpusError: a malformed row, ``file:line: what is wrong``; what was committed stays.
        ValueError: an unknown kind of index, an encoder that cannot be loaded, a corpus without passages or too small
            for the kind of index, or a folder that holds something else.
        ImportError: faiss or transformers is not installed.
    """
    corpus, folder, options = Path(corpus), Path(folder), options or DenseOptions()
    package = faiss()
    open_corpus(corpus).close()
    model = Encoder(str(encoder), options=options.encoder, device=options.device, batch=options.batch)
    try:
        package.index_factory(model.dimension, options.faiss, package.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise ValueError(f"faiss knows no index {options.faiss!r} of {model.dimension} dimensions") from None
    settings = {
        "encoder": asdict(options.encoder), "encoder_sha256": model.sha256, "dimension": model.dimension,
        "faiss": options.faiss, "nprobe": options.nprobe,
    }  # fmt: skip
    if (finished := finished_index(folder, corpus, "faiss")) is not None:
        _compare(finished.settings, settings, f"the index in {folder}")
        return finished
    building = _Building.open(folder, settings)
    intake = Intake(corpus, folder, done=building.rows, sha256=building.sha256, on_bad=on_bad if skip_bad else None)
    block: list[Passage] = []

    def commit() -> None:
        building.add(block, model.passages(block), intake.sha256)
        block.clear()
        on_progress(intake.progress)

    for passage in intake:
        if intake.is_new:
            block.append(passage)
            if len(block) == options.commit_every:
                commit()
    if block:
        commit()
    _assemble(package, folder, intake.rows, settings)
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "stepopsd")}
    versions["faiss"] = package.__version__
    where = str(Path(encoder).resolve()) if Path(encoder).is_dir() else str(encoder)
    manifest = Manifest(
        "faiss", intake.rows, intake.skipped, corpus.name, intake.sha256, versions, settings, encoder=where
    )
    write_manifest(folder, manifest)
    for name in (STATE, VECTORS):
        (folder / name).unlink()
    return manifest


def _compare(stored: dict[str, Any], asked: dict[str, Any], what: str) -> None:
    changed = [key for key in asked if stored.get(key) != asked[key]]
    if changed:
        listed = ", ".join(f"{key} {stored.get(key)!r}, not {asked[key]!r}" for key in changed)
        raise ValueError(f"{what} has {listed}; choose another folder")


class _Building:
    """The files of an unfinished build: data first, then the note that counts them; what no note counts is cut off."""

    def __init__(self, folder: Path, settings: dict[str, Any], rows: int, sizes: list[int], sha256: str) -> None:
        self._folder, self._settings = folder, settings
        self.rows, self.sha256, self._sizes = rows, sha256, sizes

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> _Building:
        """A new build, or the one that is there already. Raises ValueError where it is one of something else."""
        if begins(folder):
            for name in (VECTORS, PASSAGES):
                (folder / name).touch()
            np.zeros(1, np.uint64).tofile(folder / OFFSETS)
            building = cls(folder, settings, 0, [0, 0, 8], "")
            building._note()
            return building
        try:
            state = json.loads((folder / STATE).read_text())
            if not isinstance(state, dict):
                raise ValueError(f"the unfinished build in {folder} is one of a lexical index: choose another folder")
            building = cls(folder, settings, state["rows"], state["sizes"], state["sha256"])
            stored = state["settings"]
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{folder / STATE} is damaged ({error!r}): delete the folder") from None
        _compare(stored, settings, f"the unfinished build in {folder}")
        for name, size in zip((VECTORS, PASSAGES, OFFSETS), building._sizes, strict=True):
            path = folder / name
            if not path.is_file() or path.stat().st_size < size:
                raise ValueError(f"the unfinished build in {folder} is damaged: {name} is too short; delete the folder")
            os.truncate(path, size)
        return building

    def add(self, passages: list[Passage], vectors: np.ndarray, sha256: str) -> None:
        """Append a block to the files and count it."""
        lines = [json.dumps([p.id, p.title, p.text]).encode() + b"\n" for p in passages]
        ends = self._sizes[1] + np.cumsum([len(line) for line in lines], dtype=np.uint64)
        blocks = (vectors.tobytes(), b"".join(lines), ends.astype(np.uint64).tobytes())
        for at, (name, content) in enumerate(zip((VECTORS, PASSAGES, OFFSETS), blocks, strict=True)):
            with (self._folder / name).open("ab") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            self._sizes[at] += len(content)
        self.rows, self.sha256 = self.rows + len(passages), sha256
        self._note()

    def _note(self) -> None:
        state = {"rows": self.rows, "sizes": self._sizes, "sha256": self.sha256, "settings": self._settings}
        write_json(self._folder / STATE, state)


def _assemble(package: Any, folder: Path, rows: int, settings: dict[str, Any]) -> None:
    """The FAISS index of the stored vectors, complete or not there."""
    vectors = np.memmap(folder / VECTORS, np.float32, "r", shape=(rows, settings["dimension"]))
    index = package.index_factory(settings["dimension"], settings["faiss"], package.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        sample = np.unique(np.linspace(0, rows - 1, min(rows, _TRAINED_ON)).astype(np.int64))
        try:
            index.train(np.ascontiguousarray(vectors[sample]))
        except RuntimeError as error:
            raise ValueError(f"{rows} passages cannot train the index {settings['faiss']!r}: {error}") from None
    for start in range(0, rows, _BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + _BLOCK]))
    partial = folder / f"{INDEX}.partial"
    package.write_index(index, str(partial))
    partial.replace(folder / INDEX)
