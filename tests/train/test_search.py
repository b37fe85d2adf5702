"""Search-QA through the trainer: both layouts, resuming, and a retriever that goes away in the middle of a run."""

from __future__ import annotations

import json

import pytest

from stepopsd.envs.searchqa.world import bundled_passages
from stepopsd.rollout.records import Trajectory
from stepopsd.train import search
from stepopsd.train.config import EnvConfig, SearchConfig
from stepopsd.train.evaluation import success_by_kind
from stepopsd.train.search import require_infrastructure, search_rules, search_tasks
from stepopsd.train.trainer import Trainer
from tests.envs.fake_search import FakeRetriever, task
from tests.train.search_toy import config, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), bundled_passages())


def log(run_dir, name):
    return [json.loads(line) for line in (run_dir / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("context", ["turn", "dialogue"])
def test_two_updates_on_the_bundled_world(model, tmp_path, context):
    run = config(tmp_path / "run", model, rollout={"context": context})
    Trainer(run).run()
    metrics = log(tmp_path / "run", "metrics")
    assert [record["update"] for record in metrics] == [1, 2]
    assert all(record["sampler_gap_max"] < 1e-4 for record in metrics)
    assert all(0 <= record["env/answered"] <= 1 and "env/searches" in record for record in metrics)
    episodes = log(tmp_path / "run", "evaluations")
    assert {record["kind"] for record in episodes} == {"world_nq"}
    assert len(episodes) == 8
    assert all(set(record["scores"]) >= {"em", "f1", "sub_em", "unicode_em", "answered"} for record in episodes)


class FailsLater(FakeRetriever):
    """Loses single queries, by their number."""

    def __init__(self, lost):
        super().__init__(broken="", partial=True)
        self.lost, self.asked = lost, 0

    def search(self, queries, k):
        found = super().search(queries, k)
        for at in range(len(queries)):
            self.asked += 1
            if self.asked in self.lost:
                found[at] = None
        if None in found:
            from stepopsd.retrieval import RetrieverError

            raise RetrieverError("the server went away", found)
        return found


def searching(monkeypatch):
    """Every response is a search, whatever was sampled."""
    from stepopsd.envs.searchqa.protocol import SearchPrompting, parse_response

    def parse(self, response):
        return parse_response(f"<search>{len(response)} {hash(response) % 97}</search>")

    monkeypatch.setattr(SearchPrompting, "parse", parse)
    monkeypatch.setattr("stepopsd.rollout.loop.step_spans", lambda tokenizer, ids, chars, is_answer: {})


def test_episodes_that_lost_the_retriever_leave_loss_and_statistics(model, tmp_path, monkeypatch):
    searching(monkeypatch)
    retriever = FailsLater({1, 20})
    monkeypatch.setattr(search, "open_retriever", lambda spec, **_: retriever)
    options = {"name": "searchqa", "prompt_style": "compact", "eval_splits": [],
               "search": {"max_searches": 2, "max_infra_share": 0.5}}  # fmt: skip
    run = config(tmp_path / "run", model, env=options, credit={"name": "grpo"})
    Trainer(run).run()
    metrics = log(tmp_path / "run", "metrics")
    assert sum(record["env_failures"] for record in metrics) == 2
    told = (tmp_path / "run" / "transcripts.jsonl").read_text()
    assert "went away" not in told
    assert '"infra_error"' not in told


def test_run_stops_when_the_retriever_is_down(model, tmp_path, monkeypatch):
    searching(monkeypatch)
    monkeypatch.setattr(search, "open_retriever", lambda spec, **_: FakeRetriever(broken=" "))
    run = config(tmp_path / "run", model, env={"name": "searchqa", "prompt_style": "compact", "eval_splits": []})
    with pytest.raises(RuntimeError, match=r"8 of 8 episodes lost the retriever.*max_infra_share.*503"):
        Trainer(run).run()


def test_share_of_lost_episodes_is_compared_with_the_limit():
    played = [Trajectory(task(), "", 0, i, 0, "turn", status="infra_error" if i == 0 else "failure") for i in range(20)]
    require_infrastructure(played, EnvConfig())
    with pytest.raises(RuntimeError, match="1 of 19"):
        require_infrastructure(played[:19], EnvConfig())
    require_infrastructure([], EnvConfig())


def test_lost_episodes_are_no_failures_of_the_policy():
    records = [{"kind": "nq", "success": False, "status": "infra_error"}, {"kind": "nq", "success": True}]
    assert success_by_kind(records) == {"all": (1, 1), "nq": (1, 1)}


def test_both_published_budgets():
    assert search_rules(SearchConfig()).max_turns == 5  # Search-R1: four searches and a forced answer
    assert search_rules(SearchConfig(final_answer_turn=False)).max_turns == 4  # verl-agent: four generations


def test_missing_data_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"stepopsd data"):
        search_tasks(SearchConfig(data=str(tmp_path)), "nq")
    monkeypatch.delenv("NO_SUCH_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="environment variable"):
        search_tasks(SearchConfig(data="$NO_SUCH_DATA"), "nq")
    with pytest.raises(FileNotFoundError, match="world_nq"):
        search_tasks(SearchConfig(), "seen")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"top_k": 0}, "top_k"), ({"metric": "bleu"}, "metric"), ({"max_infra_share": 2.0}, "max_infra_share"),
     ({"max_searches": 0, "final_answer_turn": False}, "no turn is left")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**wrong)
