"""Demonstrations with searches, the model that learns from them, and the world that the demo trains on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from stepopsd.envs.searchqa import SearchRules, question_of
from stepopsd.envs.searchqa.env import LAST_TURN, NO_ACTION
from stepopsd.envs.searchqa.protocol import information, parse_response
from stepopsd.envs.searchqa.world import WorldConfig, make_world
from stepopsd.envs.searchqa.world.bundle import BUNDLED
from stepopsd.envs.searchqa.world.make import WORLD_SETS, draw_facts
from stepopsd.envs.searchqa.world.names import draw_entities, name_words
from stepopsd.experiments.lessons import training_row
from stepopsd.experiments.search_demo import DEMO_WORLD, SEARCH_PRESET, demo_world, search_in
from stepopsd.experiments.search_demonstrations import (
    SearchDemonstrationConfig,
    iter_search_demonstrations,
    keyed,
    shared_words,
)
from stepopsd.experiments.search_warmstart import (
    BUNDLED_SEARCH_MODEL,
    SearchWarmStartConfig,
    search_tokenizer,
    search_warm_start,
)
from stepopsd.experiments.sft import FitConfig
from stepopsd.experiments.tiny_model import END, TinyModelConfig
from stepopsd.retrieval import open_retriever
from stepopsd.text.chat import ChatFormat, decode
from stepopsd.train.config_io import load_config
from stepopsd.train.episodes import Episodes
from stepopsd.train.evaluation import panel
from stepopsd.train.policy import load_policy
from stepopsd.train.search import search_rules, search_tasks

SMALL = SearchDemonstrationConfig(worlds=1, persons=40, questions=40)


def played(config=SMALL):
    return [d for world in iter_search_demonstrations(config) for d in world]


@pytest.fixture(scope="module")
def demonstrations():
    return played()


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(search_tokenizer())


def test_same_seed_same_demonstrations(demonstrations):
    assert played() == demonstrations
    assert played(SearchDemonstrationConfig(worlds=1, persons=40, questions=40, seed=1)) != demonstrations
    assert len(demonstrations) == 40


def test_careful_demonstrations_find_every_answer():
    careful = played(SearchDemonstrationConfig(worlds=1, persons=40, questions=40, hasty=0.0, bare=0.0, told=0.0))
    worlds = [make_world(WorldConfig(40, "medium", 40, 1, 1_000_000), words=shared_words())]
    for question, shown in zip(worlds[0].questions["train"], careful, strict=True):
        assert shown.actions[-1] == f"<answer>{question.golden_answers[0]}</answer>"
        assert len(shown.actions) == min(4, len(question.support)) + 1
        assert all(parse_response(action).is_valid for action in shown.actions)


def test_carelessness_is_as_often_as_configured():
    hasty = played(SearchDemonstrationConfig(worlds=1, persons=40, questions=40, hasty=1.0, told=0.0))
    assert all(len(d.actions) == 1 for d in hasty)
    told = played(SearchDemonstrationConfig(worlds=1, persons=40, questions=40, told=1.0))
    assert all(d.hint_turn == -1 and "peer_correct_trajectory" in d.hint for d in told)
    with pytest.raises(ValueError, match="hasty must lie in"):
        SearchDemonstrationConfig(hasty=1.5)


def test_row_holds_the_ids_of_a_rollout_and_no_unknown_word(demonstrations, chat):
    for shown in demonstrations:
        row = training_row(chat, shown, observation_weight=0.1, form="{}")
        assert chat.tokenizer.unk_token_id not in row.ids
        sampled = decode(chat.tokenizer, [i for i, w in zip(row.ids, row.weights, strict=True) if w == 1.0])
        assert sampled == "".join(f"{action}{END}" for action in shown.actions).lower()


def test_words_of_every_world_and_note_are_known(chat):
    unknown = chat.tokenizer.unk_token_id
    world = make_world(DEMO_WORLD, words=shared_words())
    texts = [information((f"[1] {p.title}: {p.text}",), LAST_TURN) for p in world.passages] + [NO_ACTION]
    texts += [question.question for name in ("train", *WORLD_SETS) for question in world.questions[name]]
    for text in texts:
        assert unknown not in chat.tokenizer(text)["input_ids"], text


def test_wording_decides_in_the_demo_world():
    world = make_world(DEMO_WORLD, words=shared_words())
    retriever, passages = open_retriever(world.passages), {p.id: p for p in world.passages}
    wanted = [passages[p] for q in world.questions["world_nq"] for p in q.support]
    found = {}
    for name, queries in (("bare", [p.title for p in wanted]), ("keyed", [keyed(p.title, p.text) for p in wanted])):
        hits = retriever.search(queries, 1)
        found[name] = sum(hit[0].id == p.id for hit, p in zip(hits, wanted, strict=True)) / len(wanted)
    assert found["keyed"] >= 0.95
    assert found["bare"] <= 0.3


def test_worlds_of_shared_words_hold_other_facts():
    words = shared_words()
    assert list(words) == name_words(draw_facts(BUNDLED).entities)
    ours, theirs = (make_world(WorldConfig(40, "medium", 10, 1, seed), words=words) for seed in (0, 1))
    assert {p.title for p in ours.passages} != {p.title for p in theirs.passages}
    assert {w for p in ours.passages for w in p.title.split()} <= {*words, "The", "Diary", "College", "Works", "at",
                                                                   "Night"}  # fmt: skip
    with pytest.raises(ValueError, match="words must hold at least"):
        draw_entities(random.Random(0), 400, namesakes=False, words=words)


def test_a_small_warm_start_is_written_and_loads(tmp_path):
    once = FitConfig(epochs=1, batch_tokens=1024)
    tiny = TinyModelConfig(width=16, layers=1, heads=2, mlp=32)
    config = SearchWarmStartConfig(tiny, replace(SMALL, level="easy"), SMALL, once, once)
    said: list[str] = []
    folder = search_warm_start(tmp_path / "model", config, say=said.append)
    assert [line.split(":")[0] for line in said if "40 rows" in line] == ["easy", "medium"]
    base = load_config(SEARCH_PRESET)
    policy = load_policy(replace(base.model, path=str(folder)), torch.device("cpu"))
    assert len(policy.tokenizer) == len(search_tokenizer())


def test_bundled_start_searches_and_has_room_to_learn(tmp_path):
    """The demo's preset on the bundled checkpoint: neither lost nor solved."""
    base = load_config(SEARCH_PRESET)
    config = search_in(replace(base, model=replace(base.model, path=str(BUNDLED_SEARCH_MODEL))), demo_world(tmp_path))
    assert search_rules(config.env.search) == SearchRules(top_k=1)
    tasks = panel(search_tasks(config.env.search, "world_nq"), 20)
    assert all(question_of(task).hops == 1 for task in tasks)
    policy = load_policy(config.model, torch.device("cpu"))
    policy.model.eval()
    trajectories = Episodes(config, policy).play(tasks, list(range(20)), 4, temperature=1.0)
    rate = sum(t.success for t in trajectories) / len(trajectories)
    assert 0.05 < rate < 0.7
    assert sum(t.facts["searches"] for t in trajectories) > 0.3 * len(trajectories)
