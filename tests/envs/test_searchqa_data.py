"""Loaders of the known forms, preparing a folder of them, and the counts that were published."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from stepopsd.envs.searchqa import commands, prepare
from stepopsd.envs.searchqa.data import load_questions, question_of_row
from stepopsd.envs.searchqa.prepare import PUBLISHED_EVALUATION, PUBLISHED_TRAIN, Prepared
from stepopsd.envs.searchqa.questions import EVALUATION_SETS, make_question, read_questions
from tests.envs.search_files import flashrag, search_r1, verl_agent, write_lines, write_parquet
from tests.extras import missing

NQ = make_question("train_3", "nq", "who wrote emma?", ["Jane Austen", "Austen"])


def test_published_counts_add_up():
    assert sum(PUBLISHED_TRAIN.values()) == 169_615
    assert sum(PUBLISHED_EVALUATION.values()) == 51_713
    assert tuple(PUBLISHED_EVALUATION) == EVALUATION_SETS


def test_all_forms_give_the_same_question(tmp_path):
    answers = list(NQ.golden_answers)
    forms = {
        "flashrag": flashrag("train_3", "who wrote emma", answers) | {"data_source": "nq"},
        "search_r1": search_r1("nq", 3, " who wrote emma", answers),
        "verl_agent": verl_agent("nq", 3, "who wrote emma", answers) | {"id": "train_3"},
        "deep_searcher": {"Question": "who wrote emma", "source": "nq", "id": "train_3", "answer": answers},
        "array": {"question": "who wrote emma", "data_source": "nq", "id": "train_3",
                  "reward_model": {"ground_truth": {"target": np.array(answers, dtype=object)}}},
        "prompt": {k: v for k, v in search_r1("nq", 3, "who wrote emma", answers).items() if k != "question"},
        "array of messages": {**search_r1("nq", 3, "x", answers), "question": None,
                              "prompt": np.array([{"role": "user", "content": "Question: who wrote emma"}])},
    }  # fmt: skip
    for name, row in forms.items():
        assert question_of_row(row, 0) == NQ, name
    assert load_questions(write_lines(tmp_path / "any.jsonl", [forms["search_r1"]])) == [NQ]
    (tmp_path / "list.json").write_text(json.dumps([forms["deep_searcher"]]))
    assert load_questions(tmp_path / "list.json") == [NQ]
    with gzip.open(tmp_path / "z.jsonl.gz", "wt") as file:
        file.write(json.dumps(forms["flashrag"]) + "\n\n")
    assert load_questions(tmp_path / "z.jsonl.gz") == [NQ]


@pytest.mark.parametrize("form", [search_r1, verl_agent])
def test_parquet(tmp_path, form):
    pytest.importorskip("pyarrow", reason=missing("pyarrow"))
    rows = [form(source, i, f"question {i}", [f"answer {i}"]) for i in range(3) for source in ("nq", "hotpotqa")]
    found = load_questions(write_parquet(tmp_path / "train.parquet", rows))
    assert [q.data_source for q in found] == ["nq", "hotpotqa"] * 3
    assert len({q.key for q in found}) == 6  # the numbers of the two sources overlap, the questions do not
    assert found[2].golden_answers == ("answer 1",)
    assert found[2].question == "question 1?"
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"broken\.parquet: not a parquet file"):
        load_questions(tmp_path / "broken.parquet")


def test_data_source_comes_from_row_name_or_folder(tmp_path):
    rows = [flashrag("dev_0", "who", ["x"])]
    assert load_questions(write_lines(tmp_path / "2wiki" / "dev.jsonl", rows))[0].data_source == "2wikimultihopqa"
    assert load_questions(write_lines(tmp_path / "bamboogle.jsonl", rows))[0].data_source == "bamboogle"
    assert load_questions(tmp_path / "bamboogle.jsonl", data_source="musique")[0].data_source == "musique"


@pytest.mark.parametrize(
    ("row", "message"),
    [({"question": "who", "id": 1}, "no answers"), ({"golden_answers": ["x"], "id": 1}, "question must not be blank"),
     ({"question": "who", "golden_answers": []}, "golden answers"), ([1], "must be an object")],
)  # fmt: skip
def test_broken_rows_are_named(tmp_path, row, message):
    file = write_lines(tmp_path / "nq.jsonl", [flashrag("a", "who", ["x"]), row])
    with pytest.raises(ValueError, match=rf"nq\.jsonl, line 2: .*{message}"):
        load_questions(file)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no questions at"):
        load_questions(tmp_path / "none.jsonl")
    for name, content, message in (
        ("a.csv", "x", "must end in"), ("b.jsonl", "{", "not JSON"), ("c.json", "{}", "must hold a list"),
        ("d.jsonl", "", "holds no question"),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            load_questions(tmp_path / name)
    twice = write_lines(tmp_path / "nq.jsonl", [flashrag("a", "who", ["x"]), flashrag("a", "when", ["y"])])
    with pytest.raises(ValueError, match="two questions of nq have the id 'a'"):
        load_questions(twice)


def test_bad_rows_are_left_out_on_request_only_and_told(tmp_path, capsys):
    file = write_lines(tmp_path / "nq.jsonl", [flashrag("a", "who", ["x"]), {"id": "b"}, flashrag("c", "when", ["y"])])
    file.write_text("{\n" + file.read_text())
    with pytest.raises(ValueError, match=r"nq\.jsonl, line 1: not JSON"):
        prepare.prepare(tmp_path / "strict", train=[file])
    result = commands.data_searchqa(tmp_path / "out", train=(str(file),), skip_bad=True)
    told = capsys.readouterr().out
    assert "nq.jsonl, line 1: not JSON" in told
    assert "nq.jsonl, line 3: no answers" in told
    assert (result.train, result.left_out) == ({"nq": 2}, 2)
    assert [q.question_id for q in read_questions(tmp_path / "out" / "train.jsonl")] == ["a", "c"]
    file.write_text("{\n")
    with pytest.raises(ValueError, match="holds no question"):
        prepare.prepare(tmp_path / "none", train=[file], skip_bad=True)


def test_prepared_folder_has_a_file_per_set_and_a_manifest(tmp_path):
    train = write_lines(tmp_path / "train.jsonl", [search_r1("nq", 0, "who wrote emma", ["x"]),
                                                   search_r1("hotpotqa", 0, "who is it", ["y"])])  # fmt: skip
    nq = write_lines(tmp_path / "nq" / "test.jsonl", [flashrag("test_0", "Who wrote 'Emma'?", ["x"])])
    bamboogle = write_lines(tmp_path / "b.jsonl", [flashrag("test_0", "when", ["1\u20282"])])
    result = prepare.prepare(tmp_path / "out", train=[train], evaluation=[f"bamboogle={bamboogle}", nq])
    assert result.train == {"nq": 1, "hotpotqa": 1}
    assert list(result.evaluation) == ["nq", "bamboogle"]
    assert result.overlap == {"nq": 1, "bamboogle": 0}
    keys = [q.key for q in read_questions(tmp_path / "out" / "train.jsonl")]
    assert keys == [("nq", "train_0"), ("hotpotqa", "train_0")]
    assert read_questions(tmp_path / "out" / "bamboogle.jsonl")[0].golden_answers == ("1\u20282",)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "train nq: 1, published 79,168" in manifest["differs_from_published"]
    with pytest.raises(ValueError, match="must not hold prepared questions yet"):
        prepare.prepare(tmp_path / "out", train=[train])
    with pytest.raises(ValueError, match="at least one file"):
        prepare.prepare(tmp_path / "other")


def test_published_counts_have_no_differences():
    assert Prepared(PUBLISHED_TRAIN, PUBLISHED_EVALUATION, {}).differences == []
    found = Prepared(PUBLISHED_TRAIN, PUBLISHED_EVALUATION | {"extra": 2, "nq": 3}, {}).differences
    assert found == ["evaluation nq: 3, published 3,610", "evaluation extra: 2, published none"]


def test_command_reports_counts_and_is_strict_on_request(tmp_path, capsys):
    file = write_lines(tmp_path / "nq.jsonl", [flashrag("a", "who", ["x"])])
    commands.data_searchqa(tmp_path / "a", train=(str(file),))
    told = capsys.readouterr().out
    assert "train: 1 questions (published 169,615)" in told
    assert "differs: train nq: 1, published 79,168" in told
    with pytest.raises(ValueError, match="counts differ"):
        commands.data_searchqa(tmp_path / "b", train=(str(file),), strict=True)


def test_unreachable_hub_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(RuntimeError, match=r"no route.*--train and --evaluation"):
        commands.data_searchqa(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hub_files_are_prepared_where_they_can_be_had(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason=missing("pyarrow"))
    made = {
        "train.parquet": write_parquet(tmp_path / "train.parquet", [search_r1("nq", 0, "who", ["x"])]),
        "test.parquet": write_parquet(tmp_path / "test.parquet", [search_r1("popqa", 0, "when", ["x"])]),
    }
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, repo_type: str(made[name]))
    result = commands.data_searchqa(tmp_path / "out")
    assert (result.train, result.evaluation) == ({"nq": 1}, {"popqa": 1})


def test_world_command_writes_a_world_and_its_floors(tmp_path, capsys):
    commands.data_world(tmp_path / "w", persons=60, train=40, per_set=10)
    assert len(read_questions(tmp_path / "w" / "world_musique.jsonl")) == 10
    assert "closed book" in capsys.readouterr().out
