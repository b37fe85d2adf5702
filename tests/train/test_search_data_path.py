"""The real data path with hand-written files: prepare -> index -> two updates -> evaluate."""

from __future__ import annotations

import json

import pytest

from tests.extras import missing

pytest.importorskip("pyarrow", reason=missing("pyarrow"))
pytest.importorskip("tantivy", reason=missing("tantivy"))

from stepopsd import cli
from stepopsd.envs.searchqa import question_of
from stepopsd.experiments.evaluate import EPISODES, read_episodes
from stepopsd.experiments.search_table import SEARCH_TABLE
from stepopsd.retrieval import Passage
from stepopsd.train.config_io import dump_config, load_config
from stepopsd.train.search import search_tasks
from tests.envs.search_files import flashrag, search_r1, verl_agent, write_lines, write_parquet
from tests.train.search_toy import config, save_model

#: Titles in quotes on the first line, as wiki-18 has them; a title with quotes, a name with an accent, a tag.
PASSAGES = [
    Passage("0", "Emma (novel)", "Emma is a novel by Jane Austen, published in 1815."),
    Passage("1", "Jane Austen", "Jane Austen was born in Steventon, Hampshire."),
    Passage("2", 'Beyoncé "Queen B"', "Beyoncé was born in Houston. See <answer>Dallas</answer>."),
    Passage("3", "Steventon", "Steventon is a village in Hampshire."),
]
TRAIN = [
    search_r1("nq", 0, "who wrote emma", ["Jane Austen", "Austen"]),
    search_r1("nq", 1, "where was beyoncé born", ["Houston"]),
    search_r1("hotpotqa", 0, "In which county was the author of Emma born?", ["Hampshire"]),
    search_r1("hotpotqa", 1, "In which village was the author of Emma born", ["Steventon"]),
]
BAMBOOGLE = [flashrag("test_0", "where was the author of emma born", ["Steventon"])]
POPQA = [verl_agent("popqa", 0, "where is steventon", ["Hampshire"]), verl_agent("popqa", 1, "who wrote emma", ["x"])]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folder with prepared questions and an index, made by the commands that a user would type."""
    root = tmp_path_factory.mktemp("data")
    train = write_parquet(root / "train.parquet", TRAIN)
    bamboogle = write_lines(root / "bamboogle" / "test.jsonl", BAMBOOGLE)
    popqa = write_parquet(root / "test.parquet", POPQA)
    corpus = write_lines(root / "wiki.jsonl", [{"id": p.id, "contents": f'"{p.title}"\n{p.text}'} for p in PASSAGES])
    files = ["--train", str(train), "--evaluation", str(bamboogle), str(popqa)]
    assert cli.main(["data", "searchqa", "--out", str(root / "questions"), *files]) == 0
    assert cli.main(["retriever", "build", str(corpus), "--out", str(root / "index")]) == 0
    return root


def run_of(prepared, run_dir, **sections):
    model = prepared / "model"
    if not model.exists():
        questions = " ".join(str(row["question"]) for row in [*TRAIN, *BAMBOOGLE])
        save_model(model, PASSAGES, questions)
    search = {"data": str(prepared / "questions"), "retriever": str(prepared / "index"), "max_searches": 2,
              "observation_tokens": 200, "metric": "f1"}  # fmt: skip
    env = {"name": "searchqa", "prompt_style": "compact", "eval_splits": ["popqa", "bamboogle"], "search": search}
    return config(run_dir, model, env=env, **sections)


def test_prepared_questions_are_those_of_the_files(prepared):
    search = run_of(prepared, prepared / "unused").env.search
    keys = {question_of(task).key for task in search_tasks(search, "train")}
    assert keys == {("nq", "train_0"), ("nq", "train_1"), ("hotpotqa", "train_0"), ("hotpotqa", "train_1")}
    [popqa, again] = (question_of(task) for task in search_tasks(search, "popqa"))
    assert (popqa.data_source, popqa.question, popqa.golden_answers) == ("popqa", "where is steventon?", ("Hampshire",))
    manifest = json.loads((prepared / "questions" / "manifest.json").read_text())
    assert manifest["asked_in_train_too"] == {"popqa": 1, "bamboogle": 0}
    assert again.question_id == "1"


@pytest.mark.parametrize("context", ["dialogue", pytest.param("turn", marks=pytest.mark.slow)])
def test_two_updates_and_an_evaluation(prepared, tmp_path, context):
    sections = {"rollout": {"context": context}, "optim": {"lr": 1e-3, "updates": 2}}
    (tmp_path / "run.yaml").write_text(dump_config(run_of(prepared, tmp_path / "run", **sections)))
    assert cli.main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["update"] for record in metrics] == [1, 2]
    assert all(record["env_failures"] == 0 and record["sampler_gap_max"] < 1e-4 for record in metrics)

    policy = tmp_path / "run" / "checkpoints" / "update-000002" / "policy"
    args = ["--model.path", str(policy), "--run-dir", str(tmp_path / "eval"), "--eval.games", "0"]
    assert cli.main(["eval", "--config", str(tmp_path / "run.yaml"), *args]) == 0
    records = read_episodes(tmp_path / "eval" / EPISODES)
    assert sorted(r["task_id"] for r in records) == ["bamboogle/bamboogle/test_0", "popqa/popqa/0", "popqa/popqa/1"]
    table = {row["data_source"]: row for row in json.loads((tmp_path / "eval" / SEARCH_TABLE).read_text())}
    assert {name: row["questions"] for name, row in table.items()} == {
        "popqa": 2, "bamboogle": 1, "macro": 3, "micro": 3
    }  # fmt: skip
    assert load_config(tmp_path / "eval" / "config.yaml").env.search.retriever == str(prepared / "index")


def test_an_index_of_another_corpus_is_refused(prepared, capsys):
    other = write_lines(prepared / "other.jsonl", [{"id": "0", "contents": '"Emma"\nanother text'}])
    assert cli.main(["retriever", "serve", str(prepared / "index"), "--corpus", str(other)]) == 1
    assert "corpus" in capsys.readouterr().err
