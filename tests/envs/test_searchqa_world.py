"""The closed world: the same bytes from the same seed, questions that its passages answer, wording that decides."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from stepopsd.envs.searchqa import SearchQAEnv, SearchRules, task_of
from stepopsd.envs.searchqa.questions import read_questions
from stepopsd.envs.searchqa.world import (
    LEVELS,
    WorldConfig,
    bundled_passages,
    bundled_questions,
    make_world,
    write_world,
)
from stepopsd.envs.searchqa.world.bundle import BUNDLED, pack
from stepopsd.envs.searchqa.world.make import TRAIN_SETS, WORLD_SETS, draw_facts, tell
from stepopsd.envs.searchqa.world.probe import one_search, wording_recall
from stepopsd.envs.searchqa.world.relations import HELD_OUT_CHAINS, LONG_CHAINS, RELATIONS, TRAIN_CHAINS
from stepopsd.retrieval import open_retriever

SMALL = WorldConfig(persons=200, train=300, per_set=60)


@pytest.fixture(scope="module")
def worlds():
    return {level: make_world(WorldConfig(persons=300, level=level, train=300, per_set=60)) for level in LEVELS}


def test_bundled_world_is_what_its_seed_gives():
    world = make_world(BUNDLED)
    assert bundled_passages() == list(world.passages)
    for split, questions in world.questions.items():
        assert bundled_questions(split) == questions
    with pytest.raises(FileNotFoundError, match="world_nq"):
        bundled_questions("nq")


def test_same_seed_same_bytes_in_another_process_and_another_seed_another_world():
    script = (
        "import hashlib; from stepopsd.envs.searchqa.world.bundle import *; "
        "from stepopsd.envs.searchqa.world.make import *; print(hashlib.sha256(pack(make_world(BUNDLED))).hexdigest())"
    )
    hashes = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                       env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(hashes) == 1
    assert pack(make_world(WorldConfig(seed=1))) != pack(make_world(WorldConfig(seed=2)))


def test_every_question_is_answered_by_its_support(worlds):
    for world in worlds.values():
        texts = {p.id: f"{p.title} {p.text}" for p in world.passages}
        assert len(texts) == len(world.passages)
        for name in (*WORLD_SETS, "train"):
            for question in world.questions[name]:
                assert set(question.support) <= set(texts)
                told = " ".join(texts[i] for i in question.support)
                answers = question.golden_answers
                assert answers[0] in ("yes", "no") or any(a in told for a in answers), question


def test_training_and_evaluation_share_no_question_and_no_held_out_chain(worlds):
    assert not set(TRAIN_CHAINS) & set(HELD_OUT_CHAINS)
    assert all(len(chain) in (3, 4) for chain in LONG_CHAINS)
    for world in worlds.values():
        train = {q.question.lower() for q in world.questions["train"]}
        assert {q.data_source for q in world.questions["train"]} == set(TRAIN_SETS)
        for name in WORLD_SETS:
            questions = world.questions[name]
            assert {q.data_source for q in questions} == {name}
            assert len({q.key for q in questions}) == len({q.question for q in questions}) == len(questions)
            assert not train & {q.question.lower() for q in questions}


def test_each_set_stands_for_its_kind(worlds):
    sets = worlds["easy"].questions
    assert {q.hops for q in sets["world_nq"]} == {1}
    assert all(q.question == q.question.lower() for q in sets["world_nq"])
    assert sum(len(q.golden_answers) > 1 for q in sets["world_triviaqa"]) > 20
    assert {q.hops for q in sets["world_musique"]} == {3, 4}
    assert {q.hops for q in sets["world_bamboogle"]} == {2}
    assert any("grandfather" in q.question for q in sets["world_2wiki"])
    yes_no = [q.golden_answers for q in sets["world_hotpotqa"] if q.golden_answers in (("yes",), ("no",))]
    assert yes_no.count(("yes",)) == yes_no.count(("no",)) > 0


def test_name_finds_everything_where_it_is_easy_and_wording_decides_elsewhere(worlds):
    easy = wording_recall(worlds["easy"], sample=200)
    assert min(easy["name"], easy["question"], easy["passage"]) >= 0.98
    assert easy["no_name"] < 0.1
    for level in ("medium", "hard"):
        recall = wording_recall(worlds[level], sample=200)
        assert recall["question"] < 0.7
        assert recall["passage"] > 0.8


def test_one_search_is_no_shortcut_for_many_hops(worlds):
    world = worlds["easy"]
    retriever = open_retriever(world.passages)
    assert one_search(world.questions["world_nq"], retriever)["answer"] >= 0.95
    for name in ("world_musique", "world_bamboogle"):
        assert one_search(world.questions[name], retriever)["answer"] <= 0.1
    assert max(world.floors().values()) <= 0.3


def test_scripted_agents_land_where_they_should(worlds):
    """A reader with the facts in hand searches along the chain; a lazy one answers after its first search."""
    world = make_world(SMALL)
    facts = draw_facts(world.config)
    tell(world.config, facts)
    env = SearchQAEnv(open_retriever(world.passages), SearchRules(max_searches=4))
    won = {"reader": 0, "lazy": 0, "closed": 0}
    questions = world.questions["world_bamboogle"]
    for question in questions:
        passages = {p.id: p for p in world.passages}
        titles = [passages[i].title for i in question.support]
        for agent, reads in (("reader", len(titles)), ("lazy", 1), ("closed", 0)):
            env.reset(task_of(question, "test"), 0)
            seen = ""
            for title in titles[:reads]:
                result = env.step(f"<search>{title}</search>")
                seen = result.observation.text
            known = [a for a in question.golden_answers if a in seen]
            won[agent] += env.step(f"<answer>{known[0] if known else 'Nobody'}</answer>").success
    assert won["reader"] >= 0.95 * len(questions)
    assert won["lazy"] <= 0.25 * len(questions)
    assert won["closed"] == 0


def test_world_on_disk_is_a_corpus_and_question_files(tmp_path):
    world = make_world(WorldConfig(persons=60, train=40, per_set=10))
    write_world(world, tmp_path / "w")
    assert read_questions(tmp_path / "w" / "train.jsonl") == world.questions["train"]
    found = open_retriever(str(tmp_path / "w" / "corpus.jsonl")).search([world.passages[0].title], 1)[0][0]
    assert found.title == world.passages[0].title
    manifest = json.loads((tmp_path / "w" / "manifest.json").read_text())
    assert manifest["passages"] == len(world.passages)
    assert manifest["closed_book_floor"]["world_nq"] == pytest.approx(world.floors()["world_nq"], abs=1e-4)
    with pytest.raises(ValueError, match="must not hold a world yet"):
        write_world(world, tmp_path / "w")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"persons": 5}, "persons"), ({"level": "easiest"}, "level"), ({"train": 0}, "train")],
)
def test_configuration_out_of_range_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**wrong)


def test_a_world_too_small_for_its_questions_says_so():
    with pytest.raises(ValueError, match=r"has .* questions of world_nq, not 5000"):
        make_world(WorldConfig(persons=60, train=10_000, per_set=10))


def test_every_relation_is_told_with_words_that_no_question_uses():
    for relation in RELATIONS.values():
        asked = {w.strip("?") for ask in relation.asks for w in ask.lower().split()} - {"{s}"}
        shared = set.intersection(*({w for w in tell.lower().split() if w.isalpha()} for tell in relation.tells))
        assert shared - asked, relation.key
