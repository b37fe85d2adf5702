"""slime, rllm, tinker and verifiers: the adapters on lists of rows give the op's own numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import stepopsd
from stepopsd.integrations import rllm, slime, tinker, verifiers
from stepopsd.integrations.credit import HostCredit
from tests.integrations import fake_hosts as fake

SIZES = (3, 2, 4)
OPTIONS = {"lambda_decay_updates": 0, "lambda_mix": 1.0}
generator = torch.Generator().manual_seed(3)
STUDENT = [-torch.rand(n, generator=generator) for n in SIZES]
TEACHER = [-torch.rand(n, generator=generator) for n in SIZES]


def credit(**options):
    return HostCredit("stepopsd", OPTIONS | options)


def by_the_op(first=1.0, second=-1.0):
    """Rows 0 and 1 are two steps of one episode, row 2 is another."""
    return stepopsd.shape_advantages(
        None, None, None, torch.cat([torch.full((5,), first), torch.full((4,), second)]),
        torch.tensor([0, 0, 0, 1, 1, 0, 0, 0, 0]), trajectory_ids=torch.tensor([0] * 5 + [1] * 4),
        student_logprobs=torch.cat(STUDENT), teacher_logprobs=torch.cat(TEACHER), lambda_mix=1.0,
    ).advantages.split(SIZES)  # fmt: skip


def same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), b)


# slime


def slime_args(**given):
    return SimpleNamespace(context_parallel_size=1, stepopsd_options=OPTIONS, start_rollout_id=0, **given)


def slime_data(**given):
    data = {
        "rewards": [1.0, 1.0, -1.0], "loss_masks": [torch.ones(n, dtype=torch.int) for n in SIZES],
        "log_probs": STUDENT, "teacher_log_probs": TEACHER, "rollout_ids": [7, 7, 8],
    }  # fmt: skip
    return data | given


def test_slime_gets_lists_of_one_dimensional_tensors():
    data = slime_data()
    assert slime.advantages(slime_args(), data) is None
    same(data["advantages"], by_the_op())
    assert [tuple(row.shape) for row in data["returns"]] == [(3,), (2,), (4,)]


def test_slime_without_a_teacher_keeps_its_rewards():
    data = slime_data(teacher_log_probs=None)
    slime.advantages(slime_args(), data)
    same(data["advantages"], [torch.full((n,), r) for n, r in zip(SIZES, (1.0, 1.0, -1.0), strict=True)])


def test_slime_finds_the_steps_of_a_dialogue_between_observations():
    mask = torch.tensor([1, 1, 1, 0, 0, 1, 1])
    pad = torch.zeros(2)
    parts = ("log_probs", STUDENT), ("teacher_log_probs", TEACHER)
    joined = {key: [torch.cat([rows[0], pad, rows[1]]), rows[2]] for key, rows in parts}
    data = {"rewards": [1.0, -1.0], "loss_masks": [mask, torch.ones(4, dtype=torch.int)], **joined}
    slime.advantages(slime_args(), data)
    same([data["advantages"][0][mask.bool()], data["advantages"][1]], [torch.cat(by_the_op()[:2]), by_the_op()[2]])
    assert data["advantages"][0][3:5].tolist() == [0.0, 0.0]


def test_slime_counts_updates_from_where_the_run_started():
    args = slime_args()
    args.stepopsd_options, args.start_rollout_id = {"lambda_decay_updates": 12, "lambda_mix": 1.0}, 10
    first, second = slime_data(), slime_data()
    slime.advantages(args, first)  # the 11th update: λ = 1/12
    slime.advantages(args, second)  # the 12th: λ = 0
    assert not torch.equal(first["advantages"][0], torch.ones(3))
    assert torch.equal(second["advantages"][0], torch.ones(3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context_parallel_size": 2}, "context_parallel_size must be 1, got 2"),
        ({"normalize_advantages": True}, "normalize_advantages must be off"),
        ({"use_opd": True, "opd_kl_coef": 0.1}, "opd_kl_coef must be 0.*got 0.1"),
    ],
)
def test_slime_settings_that_would_undo_the_shaping_are_refused(given, message):
    args = slime_args()
    vars(args).update(given)
    with pytest.raises(ValueError, match=message):
        slime.advantages(args, slime_data())


@pytest.mark.parametrize("name", ["rewards", "loss_masks"])
def test_slime_names_a_missing_list(name):
    data = slime_data()
    del data[name]
    with pytest.raises(ValueError, match=f"rollout_data must hold {name}"):
        slime.advantages(slime_args(), data)


# rllm


def rllm_group(types=fake):
    steps = [types.Step(response_ids=[1] * len(s), logprobs=s.tolist(), id=str(i)) for i, s in enumerate(STUDENT)]
    attempts = [types.Trajectory(steps=steps[:2], reward=1.0), types.Trajectory(steps=steps[2:], reward=0.0)]
    return steps, types.TrajectoryGroup(trajectories=attempts, group_id="g")


def check_rllm(types):
    steps, group = rllm_group(types)
    told = {str(i): t.tolist() for i, t in enumerate(TEACHER)}
    rllm.assign([group], credit(divide_by_std=False), update=1, teacher_logprobs=told)
    same([step.advantage for step in steps], by_the_op(0.5, -0.5))
    assert all(isinstance(step.advantage, list) and isinstance(step.advantage[0], float) for step in steps)


def test_rllm_steps_carry_one_float_per_response_token():
    check_rllm(fake)


def test_rllm_on_its_own_classes():
    check_rllm(pytest.importorskip("rllm.types", reason="rllm is not installed"))


def test_rllm_steps_that_nobody_scored_keep_the_plain_advantage():
    steps, group = rllm_group()
    told = {"2": TEACHER[2].tolist()}
    metrics = rllm.assign([group], credit(divide_by_std=False), update=1, teacher_logprobs=told)
    assert steps[0].advantage == [0.5] * 3
    assert steps[2].advantage != [-0.5] * 4
    assert metrics["host/unscored_tokens"] == 5


def test_rllm_trajectories_without_a_reward_are_named():
    _, group = rllm_group()
    group.trajectories[1].reward = None
    with pytest.raises(ValueError, match="trajectory 't' must have a reward"):
        rllm.assign([group], credit(), update=1)


# tinker


def tinker_data(make, tensor):
    def datum(parts, advantage):
        mask = torch.cat([torch.cat([torch.zeros(1), torch.ones(SIZES[i])]) for i in parts])
        student = torch.cat([torch.cat([torch.zeros(1), STUDENT[i]]) for i in parts])
        told = torch.cat([torch.cat([torch.full((1,), float("nan")), TEACHER[i]]) for i in parts])
        inputs = {"mask": mask, "logprobs": student, "advantages": mask * advantage}
        return make({name: tensor(value) for name, value in inputs.items()}), told, mask.bool()

    return [datum((0, 1), 1.0), datum((2,), -1.0)]


def check_tinker(make, tensor):
    made = tinker_data(make, tensor)
    metadata = [{"group_idx": 0, "traj_idx": 0}, {"group_idx": 0, "traj_idx": 1}]
    tinker.shape_datums([d for d, *_ in made], metadata, credit(), update=1, teacher_logprobs_D=[t for _, t, _ in made])
    got = [d.loss_fn_inputs["advantages"].to_torch()[mask] for d, _, mask in made]
    same(got, [torch.cat(by_the_op()[:2]), by_the_op()[2]])
    assert made[0][0].loss_fn_inputs["advantages"].to_torch()[0] == 0.0


def test_tinker_datums_are_shaped_in_place():
    check_tinker(fake.Datum, fake.TensorData.from_torch)


def test_tinker_on_its_own_classes():
    host = pytest.importorskip("tinker", reason="tinker is not installed")
    empty = host.ModelInput.from_ints([1])
    check_tinker(lambda inputs: host.Datum(model_input=empty, loss_fn_inputs=inputs), host.TensorData.from_torch)


def test_tinker_lists_that_do_not_fit_are_named():
    made = [d for d, *_ in tinker_data(fake.Datum, fake.TensorData.from_torch)]
    with pytest.raises(ValueError, match="metadata_D must hold 2 entries like data_D, got 1"):
        tinker.shape_datums(made, [{"group_idx": 0, "traj_idx": 0}], credit(), update=1)
    del made[0].loss_fn_inputs["mask"]
    with pytest.raises(ValueError, match="loss_fn_inputs must hold mask"):
        tinker.shape_datums(made, [{"group_idx": 0, "traj_idx": 0}] * 2, credit(), update=1)


# verifiers


def traces(advantage=None, node=fake.MessageNode, **fields):
    def made(i):
        start = advantage if advantage is None else [advantage[i]] * SIZES[i]
        return node(
            mask=[False, *[True] * SIZES[i]], token_ids=[0] * (SIZES[i] + 1), logprobs=STUDENT[i].tolist(),
            reference_logprobs=TEACHER[i].tolist(), advantages=start, **fields,
        )  # fmt: skip

    prompt = node(mask=[False], token_ids=[0], logprobs=[], **fields)
    return [fake.Trace([prompt, made(0), made(1)], 1.0), fake.Trace([made(2)], 0.0)]


def sampled(made):
    return [node.advantages for trace in made for node in trace.nodes if any(node.mask)]


def check_verifiers(**fields):
    made = traces(**fields)
    verifiers.shape_traces(made, credit(divide_by_std=False), update=1)
    same(sampled(made), by_the_op(0.5, -0.5))
    assert made[0].nodes[0].advantages is None


def test_verifiers_nodes_carry_one_float_per_sampled_token():
    check_verifiers()


def test_verifiers_on_its_own_classes():
    graph = pytest.importorskip("verifiers.v1.graph", reason="verifiers is not installed")
    check_verifiers(node=graph.MessageNode, parent=None, message={"role": "assistant", "content": "x"})


def test_verifiers_advantages_that_are_there_are_the_start():
    made = traces(advantage=(1.0, 1.0, -1.0))
    verifiers.shape_traces(made, credit(), update=1)
    same(sampled(made), by_the_op())


def test_verifiers_groups_are_one_per_trace():
    with pytest.raises(ValueError, match="group_ids must hold 2 values, one per trace, got 1"):
        verifiers.shape_traces(traces(), credit(), update=1, group_ids=[0])
    assert verifiers.shape_traces([fake.Trace([], 1.0)], credit(), update=1) == {}
