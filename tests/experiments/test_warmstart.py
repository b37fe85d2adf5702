"""Demonstrations, their rows and the training that makes the demo's starting policy."""

from __future__ import annotations

import multiprocessing
import random
import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from stepopsd.envs.base import Observation
from stepopsd.experiments import warmstart
from stepopsd.experiments.demonstrations import DemonstrationConfig, iter_demonstrations, shortcut
from stepopsd.experiments.lessons import Demonstration, training_row
from stepopsd.experiments.sft import FitConfig, WeightedRow, bucket, fit, weighted_loss
from stepopsd.experiments.tiny_model import END, TinyModelConfig, build_model, build_tokenizer, vocabulary
from stepopsd.experiments.warmstart import BUNDLED_MODEL, WarmStartConfig, demo_tokenizer, warm_start
from stepopsd.rollout.contexts import DialogueContext, Prompting
from stepopsd.text.chat import ChatFormat, decode
from stepopsd.text.hindsight import number_actions, render_hindsight
from tests.extras import missing

SMALL = TinyModelConfig(width=16, layers=1, heads=2, mlp=32)
HINT = render_hindsight(False, number_actions(["go to shelf 1", "take pen 1 from shelf 1"]))
DIALOGUE = Demonstration(
    kind="pick_and_place_simple",
    messages=["task : move a pen to the desk\nYou see a shelf 1.", "On the shelf 1, you see a pen 1."],
    actions=["go to shelf 1", "take pen 1 from shelf 1"],
    imitated=[False, True],
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(demo_tokenizer([DIALOGUE]))


def weighted_text(chat, row, weight):
    return decode(chat.tokenizer, [i for i, w in zip(row.ids, row.weights, strict=True) if w == weight])


def rows_of(*lengths):
    rng = random.Random(0)
    return [WeightedRow([rng.randrange(5, 12) for _ in range(n)], [1.0] * n) for n in lengths]


@pytest.fixture
def model():
    return build_model(build_tokenizer(vocabulary(["a b c d e f g"])), SMALL)


def test_row_holds_the_ids_of_a_rollout(chat):
    context = DialogueContext(chat, Prompting(0, False, "compact"))
    talk = context.open("move a pen to the desk", Observation("You see a shelf 1."))
    response = chat.tokenizer(f"<action>go to shelf 1</action>{END}")["input_ids"]
    talk.advance(response, "go to shelf 1", Observation("On the shelf 1, you see a pen 1."))
    row = training_row(chat, DIALOGUE, observation_weight=0.3)
    assert row.ids[: len(talk.prompt_ids)] == talk.prompt_ids
    assert decode(chat.tokenizer, row.ids[len(talk.prompt_ids) :]) == f"<action>take pen 1 from shelf 1</action>{END}"
    assert chat.tokenizer.unk_token_id not in row.ids


def test_only_imitated_actions_carry_full_weight(chat):
    row = training_row(chat, DIALOGUE, observation_weight=0.3)
    assert weighted_text(chat, row, 1.0) == f"<action>take pen 1 from shelf 1</action>{END}"
    assert weighted_text(chat, row, 0.0) == f"<action>go to shelf 1</action>{END}"


@pytest.mark.parametrize(
    ("turn", "before", "after"),
    [
        (-1, "<|user|>", "task : move"),
        (0, "<|assistant|>", "<action>go"),
        (1, "<|assistant|>", "<action>take"),
    ],
)
def test_hint_stands_where_the_teacher_reads_it_and_carries_no_loss(chat, turn, before, after):
    row = training_row(chat, replace(DIALOGUE, hint=HINT, hint_turn=turn), observation_weight=0.3)
    plain = training_row(chat, DIALOGUE, observation_weight=0.3)
    text = decode(chat.tokenizer, row.ids)
    assert before + HINT + after in text
    assert text.replace(HINT, "") == decode(chat.tokenizer, plain.ids)
    assert HINT in weighted_text(chat, row, 0.0).replace("<|assistant|>", "").replace(
        f"<action>go to shelf 1</action>{END}", ""
    )


def test_shortcut_keeps_what_moved_the_task_on():
    actions = [
        "go to desk 1",
        "examine desk 1",
        "go to drawer 1",
        "open drawer 1",
        "take cup 1 from drawer 1",
        "take mug 2 from drawer 1",
        "look",
        "go to sink 1",
        "go to fridge 1",
        "cool mug 2 with fridge 1",
    ]
    assert shortcut(actions, "mug") == [
        "go to drawer 1",
        "open drawer 1",
        "take mug 2 from drawer 1",
        "go to fridge 1",
        "cool mug 2 with fridge 1",
    ]


def test_buckets_hold_every_row_once_within_the_budget():
    rows = rows_of(*range(1, 60), 500)
    batches = bucket(rows, 128, random.Random(0))
    assert sorted(len(row.ids) for batch in batches for row in batch) == sorted(len(row.ids) for row in rows)
    padded = [len(batch) * max(len(row.ids) for row in batch) for batch in batches]
    assert sorted(padded)[-2] <= 128
    assert max(padded) == 500  # longer than the budget: alone


def test_loss_of_a_batch_is_the_weighted_sum_over_its_rows(model):
    rows = rows_of(4, 9)
    rows[1] = WeightedRow(rows[1].ids, [0.0, 0.0, 2.0, 0.0, 0.3, 1.0, 0.0, 0.0, 1.0])
    loss, weight = weighted_loss(model, rows, pad_id=1)
    expected = 0.0
    for row in rows:
        ids = torch.tensor(row.ids)
        logprobs = F.log_softmax(model(ids[None]).logits[0, :-1].float(), dim=-1)
        expected -= (logprobs.gather(1, ids[1:, None])[:, 0] * torch.tensor(row.weights[1:])).sum()
    torch.testing.assert_close(loss, expected)
    assert weight == pytest.approx(3 + 4.3)


def test_training_lowers_the_loss_and_repeats_exactly(model):
    rows = [WeightedRow([5, 6, 7, 8, 9, 10], [1.0] * 6)] * 40
    config = FitConfig(epochs=10, batch_tokens=60, warmup_steps=4, lr=2e-2)
    losses = fit(model, rows, config, pad_id=1, say=lambda line: None)
    assert losses[-1] < 0.3 * losses[0]
    again = build_model(build_tokenizer(vocabulary(["a b c d e f g"])), SMALL)
    assert fit(again, rows, config, pad_id=1, say=lambda line: None) == losses


def test_no_rows_are_refused(model):
    with pytest.raises(ValueError, match="at least one training row"):
        fit(model, [], FitConfig(), pad_id=1)


@pytest.fixture(scope="module")
def played():
    pytest.importorskip("alfworld", reason=missing("alfworld"))
    pytest.importorskip("textworld", reason=missing("textworld"))
    config = DemonstrationConfig(games=12, plays=2, told=0.5, labelled=0.3)
    return config, [d for found in iter_demonstrations(config) for d in found]


def test_demonstrations_are_short_and_complete(played):
    config, found = played
    assert found
    assert {d.kind for d in found} >= {"pick_and_place_simple", "pick_heat_then_place_in_recep"}
    for d in found:
        assert 1 <= len(d.actions) <= config.max_steps
        assert len(d.messages) == len(d.actions) == len(d.imitated)
        assert d.messages[0].startswith("task : ")
        assert -1 <= d.hint_turn < len(d.actions)


def test_told_episodes_imitate_only_after_the_block(played):
    told = [d for d in played[1] if "peer_correct_trajectory" in d.hint]
    assert told
    for d in told:
        assert d.hint_turn <= d.imitated.index(True)
        followed = {action for action, imitated in zip(d.actions, d.imitated, strict=True) if imitated}
        assert followed <= {line.split(". ", 1)[1] for line in d.hint.splitlines() if line[:1].isdigit()}
    assert {d.hint_turn < 0 for d in told} == {True, False}
    strays = [not imitated for d in told for imitated in d.imitated[d.imitated.index(True) :]]
    assert 0 < sum(strays) < 0.4 * len(strays)


@pytest.mark.slow
def test_players_give_the_same_demonstrations_and_end_with_whoever_reads_them(played):
    config, found = played
    given = iter_demonstrations(config, workers=2)
    assert next(given) == found[: len(next(iter_demonstrations(config)))]
    given.close()
    assert not multiprocessing.active_children()


def test_random_actions_are_played_but_not_imitated(played):
    plain = [d for d in played[1] if "peer" not in d.hint]
    stray = sum(not imitated for d in plain for imitated in d.imitated)
    total = sum(len(d.actions) for d in plain)
    assert 0.03 < stray / total < 0.35


@pytest.mark.parametrize("again", [1, 0])
def test_warm_start_writes_a_model_that_loads(tmp_path, again):
    pytest.importorskip("alfworld", reason=missing("alfworld"))
    pytest.importorskip("textworld", reason=missing("textworld"))
    config = WarmStartConfig(
        model=SMALL, demonstrations=DemonstrationConfig(games=4), fit=FitConfig(epochs=1),
        refit=FitConfig(epochs=again), workers=0, threads=1,
    )
    lines: list[str] = []
    folder = warm_start(tmp_path / "model", config, say=lines.append)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer)
    assert any("parameters" in line for line in lines)
    assert sum(bool(re.match(r"step (\d+)/\1 ", line)) for line in lines) == 1 + again


def test_bundled_model_knows_every_word_of_the_bundled_games():
    pytest.importorskip("alfworld", reason=missing("alfworld"))
    from stepopsd.envs.games.bundle import bundled_games

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL, local_files_only=True)
    games = [game for _, game in bundled_games()]
    # "Sink_bar_00_bar_SinkBasin" is called sinkbasin, "Mug_bar_01" mug.
    name = re.compile(r"^(?:[A-Za-z]+_bar_\d+_bar_)?([A-Za-z]+)(?:_bar_\d+)? - (?:object|receptacle)$", re.M)
    types = {kind for game in games for kind in name.findall(game.problem)}
    names = {f"a {kind.lower()} {number}." for kind in types for number in range(1, 5)}
    assert len(games) > 100
    assert len(types) > 50
    for text in {*names, *(game.goal for game in games), *(line for game in games for line in game.walkthrough)}:
        assert tokenizer.unk_token_id not in tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_bundled_model_makes_use_of_a_peer(played):
    """On other games than it learned from: what a peer's success suggests is likelier behind the block."""
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32, local_files_only=True)
    chat = ChatFormat(AutoTokenizer.from_pretrained(BUNDLED_MODEL, local_files_only=True))
    fresh = DemonstrationConfig(games=16, seed=12345)
    told = [d for found in iter_demonstrations(fresh) for d in found if "peer_correct_trajectory" in d.hint]
    gaps = []
    for d in told:
        means = []
        for shown in (replace(d, hint_turn=-1), replace(d, hint="")):
            row = training_row(chat, shown, observation_weight=0.0)
            loss, weight = weighted_loss(model, [row], pad_id=1)
            means.append(-float(loss.detach()) / weight)
        gaps.append(means[0] - means[1])
    assert len(gaps) > 20
    assert sum(gaps) / len(gaps) > 0.01


def test_bundled_model_is_small_and_rounded_to_bfloat16():
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32, local_files_only=True)
    assert 1e5 < sum(p.numel() for p in model.parameters()) < 3e5
    assert (BUNDLED_MODEL / "model.safetensors").stat().st_size < 5e5
    assert all(torch.equal(p, p.bfloat16().float()) for p in model.parameters())


def test_size_and_device_come_from_the_command_line(monkeypatch):
    asked = []
    monkeypatch.setattr(warmstart, "warm_start", lambda out, config: asked.append((out, config)))
    sizes = "--width 512 --layers 8 --heads 8 --mlp 1536".split()
    warmstart.main(["--out", "m", *sizes, "--device", "cuda"])
    [(out, config)] = asked
    assert (out, config.device, config.model.width, config.model.layers) == ("m", "cuda", 512, 8)
    assert config.model.fan_in
    assert config.fit == warmstart.WarmStartConfig().fit
