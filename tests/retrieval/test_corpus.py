"""Corpus rows: both layouts, and every malformed row named by file and line."""

from __future__ import annotations

import gzip
import json

import pytest

from stepopsd.retrieval.base import Passage
from stepopsd.retrieval.corpus import (
    MAX_ROW_BYTES,
    CorpusError,
    IdRegister,
    join_contents,
    parse_passage,
    read_passages,
    split_contents,
)


@pytest.mark.parametrize(
    ("row", "passage"),
    [
        ({"id": "7", "contents": '"Evan Morris"\nwas a lobbyist'}, Passage("7", "Evan Morris", "was a lobbyist")),
        ({"id": 7, "contents": "Evan Morris\nline one\nline two"}, Passage("7", "Evan Morris", "line one\nline two")),
        ({"id": "7", "contents": "one line"}, Passage("7", "", "one line")),
        ({"_id": "doc-7", "title": "T", "text": "body", "metadata": {}}, Passage("doc-7", "T", "body")),
        ({"id": "7", "text": "no title"}, Passage("7", "", "no title")),
        ({"id": "7", "title": "T", "text": "body", "contents": "other"}, Passage("7", "T", "body")),
        ({"id": 0, "contents": '"\ntext'}, Passage("0", '"', "text")),
    ],
)
def test_both_layouts_are_read(row, passage):
    assert parse_passage(row) == passage


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("text", "must be a JSON object, got str"),
        ({"contents": "x"}, '"id" must be a non-empty string or an integer, got None'),
        ({"id": "", "contents": "x"}, '"id" must be a non-empty'),
        ({"id": True, "contents": "x"}, '"id" must be a non-empty'),
        ({"id": 1.5, "contents": "x"}, '"id" must be a non-empty'),
        ({"id": "1"}, '"text" must be a string, got nothing'),
        ({"id": "1", "contents": ["x"]}, '"contents" must be a string, got list'),
        ({"id": "1", "title": 3, "text": "x"}, '"title" must be a string, got int'),
        ({"id": "1", "contents": " \n "}, "the passage is empty"),
        ({"id": "1", "contents": "\ud800"}, "lone surrogate"),
    ],
)
def test_malformed_rows_say_what_is_wrong(row, words):
    with pytest.raises(ValueError, match=words):
        parse_passage(row)


def test_contents_survive_the_round_trip():
    passage = Passage("1", 'The "A" Team', "first\nsecond")
    assert split_contents(join_contents(passage)) == (passage.title, passage.text)


def write(path, rows):
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def good(number):
    return {"id": str(number), "contents": f'"T{number}"\ntext {number}'}


def test_gzip_reads_like_the_plain_file_and_blank_lines_count_as_no_row(tmp_path):
    plain = write(tmp_path / "c.jsonl", [good(0), b"", good(1), b"  "])
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    passages = list(read_passages(plain))
    assert [p.id for p in passages] == ["0", "1"]
    assert list(read_passages(packed)) == passages


BAD = [
    (b"{not json", "not JSON"),
    (b'{"id": "5", "contents": "\xff"}', "not UTF-8"),
    (b"[1]", "must be a JSON object"),
    (json.dumps(good(0)).encode(), "already taken"),
    (b'{"id":"9","contents":"' + b"x" * 2 * MAX_ROW_BYTES + b'"}', "longer than"),
    (b"[" * 200_000, "nested too deeply|not JSON"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_bad_row_is_reported_with_file_and_line_and_skipped_only_on_request(tmp_path, line, words):
    path = write(tmp_path / "c.jsonl", [good(0), b"", line, good(1)])
    with pytest.raises(CorpusError, match=words) as caught:
        list(read_passages(path))
    assert str(caught.value).startswith(f"{path}:3: ")
    bad = []
    assert [p.id for p in read_passages(path, on_bad=bad.append)] == ["0", "1"]
    assert [str(error) for error in bad] == [str(caught.value)]


def test_every_byte_is_handed_on_for_hashing(tmp_path):
    path = write(tmp_path / "c.jsonl", [good(0), b"", *(line for line, _ in BAD), good(1)])
    seen = []
    list(read_passages(path, on_bad=lambda error: None, on_bytes=seen.append))
    assert b"".join(seen) == path.read_bytes()


def test_a_missing_corpus_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no corpus at .*nothing.jsonl: expected a .jsonl"):
        next(read_passages(tmp_path / "nothing.jsonl"))


def test_ids_that_come_up_twice_are_found_in_any_order():
    register = IdRegister()
    first = ["0", "1", "3", "x", "2", "4", "007", "-1", "٣"]
    assert [register.add(key) for key in first] == [True] * len(first)
    assert [register.add(key) for key in first] == [False] * len(first)
    assert register.add("5")
