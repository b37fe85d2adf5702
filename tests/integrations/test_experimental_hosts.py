"""OpenRLHF, NeMo-RL, prime-rl and SkyRL: the wrappers on fakes, and every host's shape where it is installed."""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import stepopsd
from stepopsd.integrations import nemo_rl, openrlhf, prime_rl, rllm, skyrl, slime, tinker, verifiers
from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import HostMoved, Relied, check_host, differences, installed
from tests.integrations import fake_hosts as fake
from tests.integrations.test_ragged_hosts import sampled, traces

MASK = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]])
STEPS = torch.tensor([[0, 0, -1, 1, 1], [0, 0, 0, -1, -1]])
REWARDS = torch.tensor([1.0, 0.0])
generator = torch.Generator().manual_seed(4)
STUDENT = -torch.rand(2, 5, generator=generator)
TEACHER = -torch.rand(2, 5, generator=generator)
PLAIN = (REWARDS - REWARDS.mean())[:, None] * MASK


def credit(**options):
    return HostCredit("stepopsd", {"lambda_decay_updates": 0, "lambda_mix": 1.0} | options)


def shaped():
    told = torch.where(STEPS >= 0, TEACHER, STUDENT)
    return stepopsd.shape_advantages(
        None, None, None, PLAIN, STEPS, trajectory_ids=torch.arange(2), student_logprobs=STUDENT, teacher_logprobs=told,
        lambda_mix=1.0,
    ).advantages  # fmt: skip


def test_openrlhf_experiences_carry_shaped_advantages():
    maker = openrlhf.with_credit(fake.ExperienceMaker, credit())()
    made = SimpleNamespace(
        rewards=REWARDS, action_mask=MASK, action_log_probs=STUDENT, base_action_log_probs=TEACHER, info={}
    )
    (found,) = maker.compute_advantages_and_returns([made])
    torch.testing.assert_close(found.advantages, shaped())
    assert found.info["stepopsd/lambda"].tolist() == [1.0, 1.0]


def test_nemo_rls_estimator_is_wrapped():
    wrapped = nemo_rl.CreditEstimator(fake.Estimator(), credit())
    given = {"prompt_ids": torch.tensor([[1, 2], [1, 2]]), "rewards": REWARDS, "mask": MASK, "repeated_batch": {}}
    got = wrapped.compute_advantage(**given, logprobs_policy=STUDENT, logprobs_reference=TEACHER)
    torch.testing.assert_close(got, shaped())
    assert wrapped.metrics["lambda"] == 1.0
    with pytest.raises(ValueError, match="logprobs_policy must be given"):
        wrapped.compute_advantage(**given)


def test_prime_rls_algorithm_is_followed_by_the_shaping():
    algorithm = prime_rl.with_credit(fake.Algorithm, credit())()
    made, plain = traces(), traces()
    broken = fake.Trace(list(traces()[1].nodes), 0.5, has_error=True)
    episodes = [SimpleNamespace(traces=[made[0]]), SimpleNamespace(traces=[made[1], broken])]
    asyncio.run(algorithm.score_group(episodes))
    asyncio.run(fake.Algorithm().score_group([SimpleNamespace(traces=[*plain, broken])]))
    assert sampled(made)[0] != sampled(plain)[0]
    assert [a > 0 for a in sampled(made)[0]] == [True] * 3
    assert broken.nodes[0].advantages == [0.0] * 4


def test_skyrls_batch_is_shaped_after_its_estimator():
    trainer = skyrl.with_credit(fake.SkyTrainer, credit())()
    data = fake.SkyBatch(
        rewards=torch.nn.functional.pad(REWARDS[:, None], (4, 0)), response_mask=MASK, loss_mask=MASK.float(),
        action_log_probs=STUDENT, base_action_log_probs=TEACHER,
    )  # fmt: skip
    data.metadata = {"uids": ["a", "a"]}
    torch.testing.assert_close(trainer.compute_advantages_and_returns(data)["advantages"], shaped())
    assert trainer.all_metrics["stepopsd/lambda"] == 1.0
    with pytest.raises(ValueError, match="step_wise_trajectories must be false"):
        skyrl.with_credit(fake.SkyTrainer, credit())(step_wise=True).compute_advantages_and_returns(data)


def test_without_mixing_the_hosts_advantages_come_back_bit_for_bit():
    from stepopsd.integrations.padded import shape_rows

    got, _ = shape_rows(credit(lambda_mix=0.0), PLAIN, MASK, STUDENT, TEACHER, update=1)
    assert torch.equal(got, PLAIN)


HOSTS = {
    "slime": (slime, "slime"),
    "rllm": (rllm, "rllm"),
    "tinker_cookbook": (tinker, "tinker-cookbook"),
    "verifiers": (verifiers, "verifiers"),
    "openrlhf": (openrlhf, "openrlhf"),
    "nemo_rl": (nemo_rl, "nemo-rl"),
    "prime_rl": (prime_rl, "prime-rl"),
    "skyrl": (skyrl, "skyrl"),
}


@pytest.mark.parametrize("module", HOSTS)
def test_an_installed_host_is_what_the_adapter_was_written_for(module):
    adapter, distribution = HOSTS[module]
    if not installed(module):
        pytest.skip(f"{distribution} is not installed; written for {adapter.TESTED}")
    for item in adapter.RELIED:
        host = item.place.partition(":")[0]
        try:
            importlib.import_module(host)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == module:
                continue  # a module of the host's own is gone: that is what the check is for
            pytest.skip(f"{host} needs {error.name}, which is not installed")
    check_host(distribution, adapter.RELIED, tested=adapter.TESTED)


FAKES = {
    "openrlhf.trainer.ppo_utils.experience_maker": {"RemoteExperienceMaker": fake.ExperienceMaker},
    "nemo_rl.algorithms.advantage_estimator": {"GRPOAdvantageEstimator": fake.Estimator},
    "prime_rl.orchestrator.algo.base": {"Algorithm": fake.Algorithm},
    "skyrl.train.trainer": {"RayPPOTrainer": fake.SkyTrainer},
    "rllm.types": {"Step": fake.Step, "Trajectory": fake.Trajectory, "TrajectoryGroup": fake.TrajectoryGroup},
    "verifiers.v1.graph": {"MessageNode": fake.MessageNode},
    "tinker": {"Datum": fake.Datum, "TensorData": fake.TensorData},
}


def stand_in(monkeypatch):
    for name, members in FAKES.items():
        parts = name.split(".")
        for i in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


def relied_on_fakes():
    return [
        item for adapter, _ in HOSTS.values() for item in adapter.RELIED
        if any(item.place.startswith(f"{name}:{member}") for name, members in FAKES.items() for member in members)
    ]  # fmt: skip


def test_our_fakes_have_the_shape_that_we_expect_of_the_hosts(monkeypatch):
    stand_in(monkeypatch)
    items = relied_on_fakes()
    assert len(items) >= 9
    assert differences(items) == []


@pytest.mark.parametrize("item", relied_on_fakes(), ids=lambda item: item.place)
def test_a_host_that_moved_is_refused(item, monkeypatch):
    stand_in(monkeypatch)
    moved = Relied(item.place, (*item.parameters, "brand_new"), item.called, (*item.members, "brand_new"))
    if not item.parameters:
        moved = Relied(item.place, members=moved.members)
    if item.parameters and item.called:  # ours may be taken by **kwargs: then it is the order that tells
        moved = Relied(item.place, tuple(reversed(item.parameters)))
    with pytest.raises(HostMoved, match="expected"):
        check_host("somebody", [moved], tested="before")
