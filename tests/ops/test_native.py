"""The native row kernels against float64 formulas written out here, on every instruction set of this machine."""

from __future__ import annotations

import math
import os
import shutil
import threading

import pytest
import torch

from stepopsd.ops import native

_MISSING = native.availability("cpu")
if _MISSING and not any(map(shutil.which, ("g++", "clang++", "c++"))):
    pytest.skip(_MISSING, allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ISAS = [] if _MISSING else native.isas()
KNOBS = {"alpha_clip": 0.2, "lambda_mix": 0.2, "weight_fn": "sigmoid"}
SHAPED, WEIGHT, DELTA, LOGP_S, LOGP_T, ENT_S, ENT_T = range(7)


def test_the_native_module_is_built_where_a_compiler_is_found():
    assert _MISSING is None


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("STEPOPSD_CPU_ISA", request.param)
    return request.param


def problem(rows=6, vocab=1000, dtype=torch.float32, spread=4.0, seed=0):
    """Student, teacher, ids, advantages (with a zero among them), active: (2, rows[, vocab])."""
    g = torch.Generator().manual_seed(seed)
    student = (torch.randn(2, rows, vocab, generator=g) * spread).to(dtype)
    teacher = (torch.randn(2, rows, vocab, generator=g) * spread).to(dtype)
    ids = torch.randint(vocab, (2, rows), generator=g)
    advantages = torch.randn(2, rows, generator=g)
    advantages[0, 0] = 0.0
    return student, teacher, ids, advantages, torch.ones(2, rows, dtype=torch.bool)


def run(student, teacher, ids, advantages, active, *, temperature=1.0, entropy=True, **knobs):
    return native.pair_rows(
        student, teacher, ids, advantages, active, temperature=temperature, entropy=entropy, **{**KNOBS, **knobs}
    )


def expected(student, teacher, ids, advantages, *, temperature=1.0, alpha_clip, lambda_mix, weight_fn):
    """The seven planes in float64 for rows that are all active."""
    logps, entropies = [], []
    for logits in (student, teacher):
        logp = torch.log_softmax(logits.double() / temperature, -1)
        logps.append(logp.gather(-1, ids[..., None])[..., 0])
        entropies.append(-(logp.exp() * logp.clamp(min=-1e300)).sum(-1))
    delta = logps[1] - logps[0]
    gap = advantages.double().sign() * delta
    raw = 2 * gap.sigmoid() if weight_fn == "sigmoid" else gap.exp()
    weight = raw.clamp(1 - alpha_clip, 1 + alpha_clip)
    shaped = advantages.double() * (1 + lambda_mix * (weight - 1))
    return torch.stack([shaped, weight, delta, *logps, *entropies])


def assert_close(got, want, atol=2e-6):
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=atol, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 16, 17, 1000, 4099])
def test_rows_equal_float64_within_2e_6(isa, vocab, dtype):
    inputs = problem(vocab=vocab, dtype=dtype)
    assert_close(run(*inputs), expected(*inputs[:4], **KNOBS))


@pytest.mark.parametrize("weight_fn", ["sigmoid", "exp"])
@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_temperature_weight_function_clip_and_mix_follow_the_formulas(isa, weight_fn, temperature):
    inputs = problem(spread=0.3)
    knobs = {"alpha_clip": 0.6, "lambda_mix": 0.7, "weight_fn": weight_fn}
    want = expected(*inputs[:4], temperature=temperature, **knobs)
    assert_close(run(*inputs, temperature=temperature, **knobs), want)
    assert want[WEIGHT].unique().numel() > 3  # not everything is clipped


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_vocabulary_keeps_the_accuracy(isa, dtype):
    inputs = problem(rows=1, vocab=151_936, dtype=dtype)
    assert_close(run(*inputs), expected(*inputs[:4], **KNOBS))


def test_rising_logits_move_the_reference_block_after_block(isa):
    student, teacher, *rest = problem(rows=2, vocab=20_000)
    student[:] = torch.linspace(-300, 300, 20_000)
    teacher[:] = torch.linspace(300, -300, 20_000)
    assert_close(run(student, teacher, *rest), expected(student, teacher, *rest[:2], **KNOBS), atol=2e-5)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_a_common_shift_of_the_logits_costs_no_digits(isa, shift):
    student, teacher, *rest = problem(vocab=5000)
    student, teacher = student + shift, teacher + shift
    assert_close(run(student, teacher, *rest), expected(student, teacher, *rest[:2], **KNOBS))


def test_extreme_and_minus_infinite_logits_stay_exact(isa):
    student, teacher, ids, advantages, active = problem(vocab=5000)
    student[:, 0, :4990] = -math.inf  # whole blocks without a finite logit
    student[:, 1, 1:] = -math.inf
    ids[:, 0], ids[:, 1] = 4995, 0
    student[:, 2, 4321] = 1e4
    teacher[:, 3, 17] = -1e4
    ids[:, 2], ids[:, 3] = 4321, 17
    want = expected(student, teacher, ids, advantages, **KNOBS)
    got = run(student, teacher, ids, advantages, active)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    assert torch.equal(got[LOGP_S, :, 1], torch.zeros(2))


def test_an_id_with_probability_zero_gives_minus_infinity_and_a_clipped_weight(isa):
    student, teacher, ids, advantages, active = problem()
    teacher[0, 1, ids[0, 1]] = -math.inf
    advantages[0, 1] = 1.0
    got = run(student, teacher, ids, advantages, active)
    assert got[LOGP_T, 0, 1] == -math.inf
    assert got[WEIGHT, 0, 1] == torch.tensor(0.8)


def test_a_zero_advantage_stays_zero_under_an_infinite_gap(isa):
    student, teacher, ids, advantages, active = problem()
    teacher[0, 0, ids[0, 0]] = -math.inf
    got = run(student, teacher, ids, advantages, active)
    assert got[SHAPED, 0, 0] == 0
    assert got[WEIGHT, 0, 0] == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", ["nan at the start", "nan in the tail", "+inf", "all -inf"])
def test_a_broken_row_gives_nan_for_itself_alone(isa, dtype, poison):
    student, teacher, ids, advantages, active = problem(vocab=2085, dtype=dtype)
    clean = run(student, teacher, ids, advantages, active)
    row = student[1, 2]
    if poison == "all -inf":
        row[:] = -math.inf
    elif poison == "+inf":
        row[1234] = math.inf
    else:
        row[0 if "start" in poison else 2084] = math.nan
    got = run(student, teacher, ids, advantages, active)
    for plane in (SHAPED, WEIGHT, DELTA, LOGP_S, ENT_S):
        assert got[plane, 1, 2].isnan()
    others = torch.ones(2, 6, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(got[:, others], clean[:, others])


def test_masked_rows_read_no_logits_and_keep_their_advantage(isa):
    student, teacher, ids, advantages, active = problem()
    want = run(student, teacher, ids, advantages, active)
    active = torch.arange(12).reshape(2, 6) % 3 != 1
    student[~active], teacher[~active], ids[~active] = math.nan, math.nan, -100
    got = run(student, teacher, ids, advantages, active)
    assert torch.equal(got[:, active], want[:, active])
    rest = got[:, ~active]
    assert torch.equal(rest[SHAPED], advantages[~active])
    assert torch.equal(rest[WEIGHT], torch.ones_like(rest[WEIGHT]))
    assert torch.equal(rest[DELTA:], torch.zeros_like(rest[DELTA:]))


def test_lambda_zero_returns_the_advantages_bit_for_bit(isa):
    inputs = problem()
    assert torch.equal(run(*inputs, lambda_mix=0.0)[SHAPED], inputs[3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_logits_give_a_gap_of_exactly_zero(isa, dtype):
    student, _, ids, advantages, active = problem(vocab=4099, dtype=dtype)
    storage = torch.empty(student.numel() + 1, dtype=dtype)[1:]  # the copy lies on another alignment
    teacher = storage.view_as(student).copy_(student)
    got = run(student, teacher, ids, advantages, active)
    assert torch.equal(got[DELTA], torch.zeros(2, 6))
    assert torch.equal(got[SHAPED], advantages)


def test_log_probs_are_never_positive(isa):
    student, teacher, ids, advantages, active = problem(vocab=33, spread=30.0)
    ids = student.argmax(-1)
    got = run(student, teacher, ids, advantages, active, temperature=0.05)
    assert (got[LOGP_S] <= 0).all()
    assert (got[[ENT_S, ENT_T]] >= 0).all()


def test_without_entropy_the_planes_are_zero_and_the_rest_is_unchanged(isa):
    inputs = problem()
    got, full = run(*inputs, entropy=False), run(*inputs)
    assert torch.equal(got[:ENT_S], full[:ENT_S])
    assert torch.equal(got[ENT_S:], torch.zeros(2, 2, 6))


def test_strides_and_small_tensors_of_any_layout_are_taken(isa):
    student, teacher, ids, advantages, active = problem(rows=7)
    transposed = teacher.transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.full((2, 7, 1003), math.nan)
    wide[..., 1:1001] = student
    got = run(
        wide[:, :-1, 1:1001],
        transposed[:, :-1],
        ids.T.contiguous().T[:, :-1],
        advantages.T.contiguous().T[:, :-1],
        active.expand(2, 7)[:, :-1],
    )
    want = run(*(x[:, :-1].contiguous() for x in (student, teacher, ids, advantages, active)))
    assert torch.equal(got, want)


def test_student_and_teacher_may_differ_in_dtype(isa):
    student, teacher, *rest = problem()
    teacher = teacher.bfloat16()
    assert_close(run(student, teacher, *rest), expected(student, teacher, *rest[:2], **KNOBS))


def test_bits_do_not_depend_on_threads_or_batch(isa):
    inputs = problem(rows=40, vocab=4099, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(*inputs)
        torch.set_num_threads(3)
        together = run(*inputs)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)
    assert torch.equal(run(*(x[1:, 5:6] for x in inputs)), alone[:, 1:, 5:6])


def test_calls_from_several_python_threads_do_not_disturb_each_other():
    inputs = [problem(rows=40, vocab=4099, seed=seed) for seed in range(4)]
    want = [run(*x) for x in inputs]
    got: list[torch.Tensor | None] = [None] * 4

    def work(i):
        for _ in range(5):
            got[i] = run(*inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(g is not None and torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_with_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # torch's own pool does not survive a fork
    inputs = problem(rows=40, vocab=4099)
    want = run(*inputs)  # the pool of this process exists from here on
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(run(*inputs), want) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("bad", [-1, 1000, 2**40])
def test_an_id_outside_the_vocabulary_names_place_and_value(isa, bad):
    student, teacher, ids, advantages, active = problem()
    ids[1, 3], ids[1, 5] = bad, -7
    with pytest.raises(IndexError, match=rf"token_ids must lie in \[0, 1000\), got {bad} at position \(1, 3\)"):
        run(student, teacher, ids, advantages, active)


def test_wrong_tensors_are_refused_by_name():
    student, teacher, ids, advantages, active = problem()
    with pytest.raises(TypeError, match="teacher must be float32, float16 or bfloat16"):
        run(student, teacher.double(), ids, advantages, active)
    with pytest.raises(ValueError, match="student must be contiguous along the vocabulary"):
        run(student.repeat(1, 1, 2)[..., ::2], teacher, ids, advantages, active)
    with pytest.raises(ValueError, match=r"teacher must have shape"):
        run(student, teacher[..., :-1], ids, advantages, active)
    with pytest.raises(ValueError, match=r"ids must be a CPU tensor of torch.int64"):
        run(student, teacher, ids.int(), advantages, active)


def test_no_rows_give_an_empty_result():
    student, teacher, ids, advantages, active = (x[:, :0] for x in problem())
    assert run(student, teacher, ids, advantages, active).shape == (7, 2, 0)


@pytest.mark.parametrize("weight_fn", ["sigmoid", "exp"])
def test_ready_log_probs_go_through_the_same_tail(weight_fn):
    student, teacher, ids, advantages, active = problem(spread=0.3)
    active[1, 2] = False
    rows = run(student, teacher, ids, advantages, active, weight_fn=weight_fn)
    flat = (x.reshape(-1) for x in (rows[LOGP_S], rows[LOGP_T], advantages, active))
    got = native.epilogue_rows(*flat, **{**KNOBS, "weight_fn": weight_fn})
    assert torch.equal(got, rows[:3].reshape(3, -1))


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("STEPOPSD_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match=r"STEPOPSD_CPU_ISA must be one of portable.*got 'mmx'"):
        native.isa()


def test_other_devices_are_refused_with_a_reason():
    assert "cuda" in (native.availability("cuda") or "")
