"""From other people's files to a folder that a run can read: one file of questions per split, counts checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepopsd.envs.searchqa.data import load_questions
from stepopsd.envs.searchqa.questions import EVALUATION_SETS, Question, require_distinct, write_questions
from stepopsd.envs.searchqa.scoring import normalize

#: Questions per data source in the published data (FlashRAG, arXiv 2405.13576, as Search-R1 uses it).
PUBLISHED_TRAIN = {"nq": 79_168, "hotpotqa": 90_447}
PUBLISHED_EVALUATION = {
    "nq": 3_610, "triviaqa": 11_313, "popqa": 14_267, "hotpotqa": 7_405, "2wikimultihopqa": 12_576, "musique": 2_417,
    "bamboogle": 125,
}  # fmt: skip
#: Where Search-R1's authors publish both parts.
HUB_DATASET = "PeterJinGo/nq_hotpotqa_train"
HUB_FILES = {"train": "train.parquet", "evaluation": "test.parquet"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written.

    Attributes:
        train: Training questions per data source.
        evaluation: Evaluation questions per data source, each in a file of its own.
        overlap: Evaluation questions that are asked in the training data too, per data source.
        left_out: Malformed rows that were left out on request.
    """

    train: dict[str, int]
    evaluation: dict[str, int]
    overlap: dict[str, int]
    left_out: int = 0

    @property
    def differences(self) -> list[str]:
        """Counts that are not the published ones, in words."""
        found = []
        for part, counts, published in (
            ("train", self.train, PUBLISHED_TRAIN), ("evaluation", self.evaluation, PUBLISHED_EVALUATION)
        ):  # fmt: skip
            for name in [*published, *(name for name in counts if name not in published)]:
                ours, theirs = counts.get(name, 0), published.get(name)
                if ours != theirs:
                    found.append(f"{part} {name}: {ours:,}, published {'none' if theirs is None else f'{theirs:,}'}")
        return found


def prepare(
    out: Path, *, train: Sequence[str | Path] = (), evaluation: Sequence[str | Path] = (), skip_bad: bool = False,
    say: Callable[[str], None] = print,
) -> Prepared:  # fmt: skip
    """Read files of questions and write ``train.jsonl``, one ``<data source>.jsonl`` per set, and a manifest.

    Args:
        out: Folder to write; must not hold prepared questions yet.
        train: Files, each a path or ``data source=path``.
        evaluation: The same for evaluation; a file may hold several sets.
        skip_bad: Report malformed rows and leave them out, instead of stopping at the first.
        say: Receives the reports.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: ``out`` is in use, no file was given, a file is broken, or two questions share source and id.
    """
    if not train and not evaluation:
        raise ValueError("train or evaluation must name at least one file")
    if (out / "manifest.json").exists():
        raise ValueError(f"out must not hold prepared questions yet, got {str(out)!r}")
    bad: list[ValueError] = []

    def leave_out(error: ValueError) -> None:
        bad.append(error)
        say(f"left out {error}")

    on_bad = leave_out if skip_bad else None
    training, sets = _load(train, on_bad), _by_source(_load(evaluation, on_bad))
    known = {_same_words(q) for q in training}
    result = Prepared(
        train={name: len(questions) for name, questions in _by_source(training).items()},
        evaluation={name: len(questions) for name, questions in sets.items()},
        overlap={name: sum(_same_words(q) in known for q in questions) for name, questions in sets.items()},
        left_out=len(bad),
    )
    out.mkdir(parents=True, exist_ok=True)
    if training:
        write_questions(out / "train.jsonl", training)
    for name, questions in sets.items():
        write_questions(out / f"{name}.jsonl", questions)
    (out / "manifest.json").write_text(json.dumps(_manifest(result, train, evaluation), indent=2) + "\n")
    return result


def hub_files() -> dict[str, Path]:
    """Search-R1's parquet files from the hub: ``train`` and ``evaluation`` -> local path.

    Raises:
        ImportError: huggingface_hub is missing.
        RuntimeError: The hub cannot be reached or no longer has the files; says what to do instead.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError("downloading needs huggingface_hub: pip install 'stepopsd[train]'") from error
    try:
        return {
            part: Path(hf_hub_download(HUB_DATASET, name, repo_type="dataset")) for part, name in HUB_FILES.items()
        }
    except Exception as error:  # the client's own errors share no base with those of the network below it
        raise RuntimeError(
            f"the hub did not give {HUB_DATASET} ({type(error).__name__}: {error}); download its parquet files, or "
            "FlashRAG's JSON lines, elsewhere and name them with --train and --evaluation"
        ) from error


def _load(files: Iterable[str | Path], on_bad: Callable[[ValueError], None] | None) -> list[Question]:
    found: list[Question] = []
    for spec in files:
        name, mark, path = str(spec).partition("=")
        if not mark or Path(str(spec)).exists():
            name, path = "", str(spec)
        found += load_questions(path, data_source=name, on_bad=on_bad)
    require_distinct(found, "the files together")
    return found


def _by_source(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """Data source -> its questions, the seven sets in the published order first."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.data_source, []).append(question)
    return {name: found[name] for name in [*EVALUATION_SETS, *sorted(found)] if name in found}


def _same_words(question: Question) -> str:
    return normalize(question.question)


def _manifest(result: Prepared, train: Sequence[str | Path], evaluation: Sequence[str | Path]) -> dict[str, Any]:
    return {
        "files": {"train": [str(f) for f in train], "evaluation": [str(f) for f in evaluation]},
        "train": result.train,
        "evaluation": result.evaluation,
        "asked_in_train_too": result.overlap,
        "differs_from_published": result.differences,
        "malformed_rows_left_out": result.left_out,
    }
