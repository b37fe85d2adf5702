"""Reading a corpus: one JSON object per line, with every malformed row named by file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from stepopsd.retrieval.base import Passage

MAX_ROW_BYTES = 1 << 20  #: a passage is about 100 words; a line of this size is a file without line ends


class CorpusError(ValueError):
    """A row that is no passage; the message names file and line."""


def parse_passage(row: Any) -> Passage:
    """One passage from a decoded corpus row.

    Two forms are read: ``{"id", "contents"}``, where the first line of ``contents`` is the title, with or without
    double quotes; and ``{"id" or "_id", "title", "text"}``. An integer id is taken as its decimal digits.

    Raises:
        ValueError: what is missing or of the wrong type.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, got {type(row).__name__}")
    key = row.get("id", row.get("_id"))
    if isinstance(key, bool) or not isinstance(key, (str, int)) or key == "":
        raise ValueError(f'"id" must be a non-empty string or an integer, got {key!r}')
    if "contents" in row and "text" not in row:
        title, text = split_contents(_string(row, "contents"))
    else:
        title, text = _string(row, "title") if "title" in row else "", _string(row, "text")
    if not (title + text).strip():
        raise ValueError('the passage is empty: neither title nor text ("contents", or "title" and "text")')
    return Passage(str(key), title, text)


def split_contents(contents: str) -> tuple[str, str]:
    """``"Title"\\ntext`` as title and text; a single line is all text."""
    first, newline, rest = contents.partition("\n")
    if not newline:
        return "", contents
    first = first.strip()
    return (first[1:-1] if len(first) > 1 and first[0] == first[-1] == '"' else first), rest


def join_contents(passage: Passage) -> str:
    """The ``contents`` that servers of this API return: title in double quotes, then the text."""
    return f'"{passage.title}"\n{passage.text}'


class IdRegister:
    """Finds ids that come up twice. Ids that count 0, 1, 2, ... (as in wiki-18) take no memory."""

    def __init__(self) -> None:
        self._counted = 0  # the ids "0" to this number, itself left out, have been seen
        self._others: set[str] = set()

    def add(self, key: str) -> bool:
        """Note an id; False if it was there before."""
        if key == str(self._counted) and key not in self._others:
            self._counted += 1
            return True
        if key in self._others or (key.isdecimal() and key == str(int(key)) and int(key) < self._counted):
            return False
        self._others.add(key)
        return True


def read_passages(
    path: str | Path,
    *,
    on_bad: Callable[[CorpusError], None] | None = None,
    on_bytes: Callable[[bytes], None] | None = None,
) -> Iterator[Passage]:
    """The passages of a ``.jsonl`` or ``.jsonl.gz`` file, in its order. Blank lines count as no row.

    Args:
        path: The file.
        on_bad: Told of every malformed row, which is then left out; None raises at the first.
        on_bytes: Given every line as it was read (decompressed), for hashing and progress.

    Raises:
        FileNotFoundError: no such file.
        CorpusError: a malformed row, ``file:line: what is wrong``; a second row with the same id is one.
    """
    path, seen = Path(path), IdRegister()
    with open_corpus(path) as lines:
        number = 0
        while line := lines.readline(MAX_ROW_BYTES):
            number += 1
            if on_bytes:
                on_bytes(line)
            try:
                if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                    _skip_line(lines, on_bytes)
                    raise ValueError(f"the line is longer than {MAX_ROW_BYTES} bytes; one JSON object per line, please")
                if not line.strip():
                    continue
                passage = parse_passage(_decode(line))
                if not seen.add(passage.id):
                    raise ValueError(f"the id {passage.id!r} is already taken by an earlier row")
            except ValueError as error:
                bad = CorpusError(f"{path}:{number}: {error}")
                if on_bad is None:
                    raise bad from None
                on_bad(bad)
                continue
            yield passage


def open_corpus(path: Path) -> IO[bytes]:
    """The file's lines as bytes, decompressed where its name ends in ``.gz``. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"no corpus at {path}: expected a .jsonl or .jsonl.gz file")
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("not a passage: JSON nested too deeply") from None


def _string(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f'"{key}" must be a string, got {"nothing" if value is None else type(value).__name__}')
    try:
        value.encode()  # JSON may hold half of a surrogate pair, which no file or socket takes
    except UnicodeEncodeError:
        raise ValueError(f'"{key}" holds a lone surrogate, which is no Unicode text') from None
    return value


def _skip_line(lines: IO[bytes], on_bytes: Callable[[bytes], None] | None) -> None:
    while part := lines.readline(MAX_ROW_BYTES):
        if on_bytes:
            on_bytes(part)
        if part.endswith(b"\n"):
            return
