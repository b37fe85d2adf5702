"""Questions from other people's files: Search-R1 and verl-agent parquet, FlashRAG and NQ-open lines, plain JSON."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stepopsd.envs.searchqa.questions import Question, make_question, require_distinct

#: File names that say which part of a data set they hold, not which data set.
_PARTS = ("train", "test", "dev", "valid", "validation", "val", "questions", "data")
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json")


def load_questions(
    path: str | Path, *, data_source: str = "", on_bad: Callable[[ValueError], None] | None = None
) -> list[Question]:
    """The questions of one file, in its order.

    Args:
        path: ``.parquet`` (needs pyarrow), ``.jsonl``, ``.jsonl.gz`` or a ``.json`` list.
        data_source: Name of the data set for rows that do not say; by default the file's name, or its folder's where
            the file is called ``train``, ``test`` and the like.

    Raises:
        FileNotFoundError: No such file.
        ImportError: pyarrow is missing.
        ValueError: An unknown kind of file, a row that is no question (with its number), or two rows with one id.

    Example:
        >>> load_questions("nq/test.jsonl")[0].data_source                 # doctest: +SKIP
        'nq'
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no questions at {file}")
    source = data_source or _named(file)
    found = []
    for number, (where, row) in enumerate(_rows(file)):
        try:
            found.append(question_of_row(_parsed(row), number, source))
        except (ValueError, TypeError) as error:
            bad = ValueError(f"{file}, {where}: {error}")
            if on_bad is None:
                raise bad from error
            on_bad(bad)
    if not found:
        raise ValueError(f"{file}: holds no question")
    require_distinct(found, str(file))
    return found


def question_of_row(row: Mapping[str, Any], number: int, data_source: str = "") -> Question:
    """One question from a row of any of the known forms.

    The id is the row's own; else ``extra_info.index``, which counts within a data source; else ``number``. Answers may
    be a text, a list or an array, wherever the form keeps them.

    Raises:
        ValueError: No question or no answer in the row.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"must be an object, got {type(row).__name__}")
    nested = _mapping(row, "env_kwargs")
    places = (row, nested)
    words = _first(places, "question", "Question") or _asked(row.get("prompt"))
    key = _first((row,), "question_id", "id", "_id")
    if key is None:
        key = _first((_mapping(row, "extra_info"),), "index")
    return make_question(
        number if key is None else key,
        _first(places, "data_source", "source") or data_source,
        words,
        _answers(row, nested),
    )


def _answers(row: Mapping[str, Any], nested: Mapping[str, Any]) -> Any:
    plain = _first((row,), "golden_answers", "answers", "answer")
    if plain is not None:
        return plain
    for holder in (_mapping(row, "reward_model"), nested):
        truth = holder.get("ground_truth")
        if truth is not None:
            return truth.get("target") if isinstance(truth, Mapping) else truth
    raise ValueError(f"no answers: none of golden_answers, answers, answer, reward_model, env_kwargs in {sorted(row)}")


def _asked(prompt: Any) -> str | None:
    """The question inside a rendered Search-R1 prompt, where a row has no field for it."""
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[-1], Mapping):
        prompt = prompt[-1].get("content")
    if isinstance(prompt, str) and "Question:" in prompt:
        return prompt.rpartition("Question:")[2].strip()
    return None


def _first(places: Iterable[Mapping[str, Any]], *names: str) -> Any:
    return next((place[name] for place in places for name in names if place.get(name) is not None), None)


def _mapping(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = row.get(name)
    return value if isinstance(value, Mapping) else {}


def _named(file: Path) -> str:
    stem = file.name.split(".")[0]
    return file.resolve().parent.name if stem in _PARTS else stem


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, row); a line of JSON is not parsed yet, so that a broken one does not end the file."""
    if file.name.endswith(".parquet"):
        yield from ((f"row {number}", row) for number, row in enumerate(_parquet(file), start=1))
    elif file.name.endswith((".jsonl", ".jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            yield from ((f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())
    elif file.name.endswith(".json"):
        try:
            content = _parsed(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if not isinstance(content, list):
            raise ValueError(f"{file}: must hold a list of questions, got {type(content).__name__}")
        yield from ((f"row {number}", row) for number, row in enumerate(content, start=1))
    else:
        raise ValueError(f"{file}: must end in {', '.join(SUFFIXES)}")


def _parquet(file: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ImportError("reading parquet needs pyarrow: pip install 'stepopsd[train]'") from error
    try:
        content = parquet.ParquetFile(file)
    except ArrowInvalid as error:
        raise ValueError(f"{file}: not a parquet file ({error})") from error
    # Rendered prompts and retrieval contexts make up most of such a file and are not needed.
    wanted = {"id", "_id", "question_id", "question", "Question", "golden_answers", "answers", "answer", "data_source",
              "source", "reward_model", "env_kwargs", "extra_info"}  # fmt: skip
    columns = [name for name in content.schema_arrow.names if name in wanted]
    if not {"question", "Question", "env_kwargs"} & set(columns):
        columns += [name for name in content.schema_arrow.names if name == "prompt"]
    for batch in content.iter_batches(batch_size=4096, columns=columns):
        yield from batch.to_pylist()


def _parsed(row: Any) -> Any:
    if not isinstance(row, str):
        return row
    try:
        return json.loads(row)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
