"""With verl itself: modes, advantage step, agent loop and configurations on its own classes, on the CPU."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import warnings
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch

from stepopsd.integrations.hosts import HostMoved, Relied, differences
from stepopsd.integrations.verl import doctor, expected, plugin
from stepopsd.integrations.verl.batch import TEACHER
from tests.integrations.verl.test_batch import KEYS, batch, credit, rows
from tests.integrations.verl.test_play import Doors, Letters, Teacher

pytest.importorskip("verl", reason="verl is not installed: pip install --no-deps verl, and what it imports on a CPU")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trainers = pytest.importorskip("verl.trainer.ppo.v1", reason="verl's trainers cannot be imported")
    loops = pytest.importorskip(
        "verl.experimental.agent_loop.agent_loop", reason="verl's agent loop cannot be imported"
    )
pytest.importorskip("tensordict", reason="tensordict is not installed: verl imports it")


def test_verl_is_what_the_adapter_was_written_for():
    assert differences(expected.TRAINER) == []
    assert differences(expected.LOOP) == []


def test_our_modes_are_verls_trainers():
    plugin.install()
    pairs = ("stepopsd", trainers.PPOTrainerSync), ("stepopsd_separate_async", trainers.PPOTrainerSeparateAsync)
    for mode, base in pairs:
        assert issubclass(trainers.get_trainer_cls(mode), base)
    assert loops._agent_loop_registry["stepopsd"]["_target_"].endswith("agent_loop.EpisodeLoop")


def test_a_verl_that_moved_stays_usable_and_says_so(monkeypatch, caplog):
    from stepopsd.integrations.verl import trainer

    monkeypatch.setattr(trainer, "TRAINER", (Relied("verl:DataProto.no_such_method"),))
    with pytest.raises(HostMoved, match=r"(?s)verl .*no_such_method"):
        trainer.register()
    with caplog.at_level(logging.ERROR, logger=plugin.__name__):
        plugin.register_modes()
    assert "no_such_method" in caplog.text


@pytest.mark.parametrize("name", doctor.CONFIGS)
def test_our_configurations_fit_verls_schema(name):
    config = composed(name)
    doctor.check_configuration(config)
    assert config.trainer.v1.trainer_mode == "stepopsd"
    row = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.rollout.max_model_len > row


def test_a_key_that_verl_does_not_know_is_found():
    with pytest.raises(Exception, match="no_such_key"):
        doctor.check_configuration(doctor.compose(doctor.CONFIGS[0], ("+data.no_such_key=1",)))


class Store:
    """TransferQueue's two calls over one TensorDict."""

    def __init__(self, data):
        self.data = data

    def get(self, keys, partition_id, select_fields=None):
        return self.data.select(*[field for field in select_fields if field in set(self.data.keys())])

    def put(self, keys, partition_id, fields=None, tags=None):
        from transfer_queue import KVBatchMeta

        self.data.update(fields)
        return KVBatchMeta(keys=list(keys), tags=[{}] * len(keys), partition_id=partition_id)


@pytest.fixture
def stored(monkeypatch):
    """Two sessions of one prompt, one of another, and a row that verl made up to fill the batch."""
    import transfer_queue
    from tensordict import NonTensorStack, TensorDict

    data, student, told = batch()
    fields = {name: value for name, value in data.items() if name not in ("uid", "advantages")}
    fields |= {"old_log_probs": fields["rollout_log_probs"]}
    store = Store(TensorDict({**fields, "uid": NonTensorStack(*data["uid"].tolist())}, batch_size=len(KEYS)))
    monkeypatch.setattr(transfer_queue, "kv_batch_get", store.get)
    monkeypatch.setattr(transfer_queue, "kv_batch_put", store.put)
    return store, student, told


@lru_cache(maxsize=4)
def composed(name):
    return doctor.compose(name)


def configured(**options):
    """Our configuration for ALFWorld with other options of the method."""
    config = copy.deepcopy(composed("stepopsd_alfworld"))
    config.stepopsd.options.update(options)
    return config


def a_trainer(**options):
    """Our synchronous mode as far as its advantage step needs it: no model, no Ray."""
    config = configured(**options)
    made = object.__new__(trainers.get_trainer_cls("stepopsd"))
    from stepopsd.integrations.verl.trainer import read_credit

    made.config, made.global_steps = config, 1
    made.stepopsd, made.credit = read_credit(config)
    return made


def step(made):
    from transfer_queue import KVBatchMeta

    metrics = {}
    meta = KVBatchMeta(keys=list(KEYS), tags=[{}] * len(KEYS), partition_id="train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = made._compute_advantage(meta, metrics)
    assert back.keys == KEYS
    return metrics


def test_the_advantage_step_shapes_what_verl_computed(stored):
    store, *_ = stored
    made = a_trainer(lambda_decay_updates=0, lambda_mix=1.0)
    metrics = step(made)
    shaped = store.data["advantages"].unbind()
    plain = store.data["returns"].unbind()
    assert plain[0][0] == plain[1][0] == -plain[2][0]
    assert plain[0][0] > 0
    assert not torch.equal(shaped[0], plain[0])
    assert all(torch.equal(s.sign(), p.sign()) for s, p in zip(shaped, plain, strict=True))
    assert metrics["stepopsd/lambda"] == 1.0
    assert metrics["stepopsd/delta/steps"] == 3


def test_without_mixing_verls_advantages_come_back_bit_for_bit(stored):
    store, *_ = stored
    step(a_trainer(lambda_mix=0.0))
    for shaped, plain in zip(store.data["advantages"].unbind(), store.data["returns"].unbind(), strict=True):
        assert torch.equal(shaped, plain)


def test_the_mode_that_verl_reads_is_its_own(monkeypatch):
    seen = []
    monkeypatch.setattr(
        trainers.PPOTrainer, "__init__", lambda self, config: seen.append(config.trainer.v1.trainer_mode)
    )
    trainers.get_trainer_cls("stepopsd_colocate_async")(configured())
    assert seen == ["colocate_async"]


def test_one_dense_tensor_is_as_good_as_a_jagged_one():
    from stepopsd.integrations.verl.batch import shape_batch

    data, *_ = batch()
    same = {name: rows(list(value.unbind())[:1] * 2) for name, value in data.items() if name != "uid"}
    same["uid"] = data["uid"][:2]
    dense = dict(same, **{TEACHER: torch.stack(list(same[TEACHER].unbind()))})
    one, _ = shape_batch(same, KEYS[:2], credit(), update=1)
    two, _ = shape_batch(dense, KEYS[:2], credit(), update=1)
    assert torch.equal(one.values(), two.values())


@pytest.fixture
def loop(monkeypatch):
    """The loop around a scripted server, without verl's tokenizer classes."""
    from stepopsd.integrations.verl import agent_loop

    made = object.__new__(agent_loop.EpisodeLoop)
    made.config = configured(lambda_decay_updates=0)
    made.rollout_config = made.config.actor_rollout_ref.rollout
    made.rollout_config.n = 2
    made.settings, made.credit = agent_loop.read_credit(made.config)
    made.tokenizer = Letters()
    monkeypatch.setattr(agent_loop, "load_player", lambda place, options: Doors(2))
    made.teacher = Teacher()
    monkeypatch.setattr(agent_loop, "scorer_of", lambda settings, client: made.teacher)

    async def tokens(messages):
        return [ord(c) for c in messages[0]["content"]]

    monkeypatch.setattr(type(made), "ct_build_initial_tokens", staticmethod(tokens))
    return made


def run(made, answers, split="train"):
    served = {}

    async def by_session(request_id, **rest):
        if request_id not in served:
            served[request_id] = iter(answers[len(served)])
        ids = [ord(c) for c in next(served[request_id])]
        return SimpleNamespace(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields={"global_steps": 4})

    made.server_manager = SimpleNamespace(generate=by_session)
    info = {"split": split, "task": json.dumps({"task_id": "t"}), "seed": 0, "index": 0}

    async def group():
        sessions = (made.run({}, extra_info=info, uid="u", session_id=i, global_steps=1) for i in range(2))
        return await asyncio.gather(*sessions)

    return asyncio.run(group())


def test_every_call_of_an_episode_is_a_row_that_verls_containers_hold(loop):
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    won, lost = run(loop, [[":a", "x:bb"], [":ccc", ""]])
    assert [row.reward_score for row in won] == [1.0, 1.0]
    assert [row.reward_score for row in lost] == [0.0]
    assert won[-1].extra_fields["reward_extra_info"]["won"] == 1.0
    stacked = list_of_dict_to_tensordict([row.as_dict() for row in (*won, *lost)])
    assert stacked[TEACHER].is_nested
    for row, scores in zip((*won, *lost), stacked[TEACHER].unbind(), strict=True):
        assert len(scores) == len(row.prompt_ids) + len(row.response_ids)
        span = scores[len(row.prompt_ids) - 1 : -1]
        at = "".join(map(chr, row.response_ids)).index(":")
        assert span[:at].isnan().all()
        assert (span[at:] < 0).all()
    assert stacked["rollout_log_probs"].unbind()[0].tolist() == [-0.5, -0.5]


def test_the_failed_attempt_is_told_what_its_sibling_did(loop):
    run(loop, [[":a", "x:bb"], [":ccc", ""]])
    hints = {response: context for context, response in loop.teacher.asked}
    assert "1. a\n2. bb" in hints[":ccc"]
    assert "peer_correct_trajectory" not in hints[":a"]
    from stepopsd.integrations.verl import agent_loop

    assert len(agent_loop.SIBLINGS) == 0


def test_nobody_is_asked_in_validation(loop):
    won, _ = run(loop, [[":a", "x:bb"], [":ccc", ""]], split="seen")
    assert not loop.teacher.asked
    assert won[0].as_dict()[TEACHER].isnan().all()


def test_the_doctor_finds_nothing_wrong_but_the_engine():
    wrong = {finding.name for finding in doctor.findings() if not finding.ok}
    assert wrong <= {"rollout engine", "entry point", "import verl"}
