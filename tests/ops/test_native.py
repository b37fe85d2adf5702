"""The native row kernels against float64 formulas, on every instruction set of this machine."""

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
LOGP, LSE, ENTROPY = range(3)
# Largest relative error of 2^x, as csrc/include/exp2.h states it: float32 logits, 16-bit logits.
POWER_ERRORS = {"portable": (2.2e-7, 2.2e-7), "avx2": (3.4e-7, 3.4e-7), "avx512": (2.2e-7, 8.9e-7)}
POWER_ERRORS["avx512bf16"] = POWER_ERRORS["avx512"]


def test_the_native_module_is_built_where_a_compiler_is_found():
    assert _MISSING is None


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("STEPOPSD_CPU_ISA", request.param)
    return request.param


def problem(rows=6, vocab=1000, dtype=torch.float32, spread=4.0, seed=0):
    """Two tensors of logits (2, rows, vocab), ids and active (2, rows)."""
    g = torch.Generator().manual_seed(seed)
    pair = [(torch.randn(2, rows, vocab, generator=g) * spread).to(dtype) for _ in range(2)]
    return pair, torch.randint(vocab, (2, rows), generator=g), torch.ones(2, rows, dtype=torch.bool)


def run(logits, ids, active, *, temperature=1.0, entropy=True):
    return native.score_rows(logits, ids, active, temperature=temperature, entropy=entropy)


def expected(logits, ids, temperature=1.0):
    """(K, 3, B, R) in float64."""
    results = []
    for x in logits:
        z = x.double() / temperature
        top = z.amax(-1, keepdim=True)
        logp = (z - top) - (z - top).logsumexp(-1, keepdim=True)
        entropy = -(logp.exp() * logp.clamp(min=-1e300)).sum(-1)
        results.append(torch.stack((logp.gather(-1, ids[..., None])[..., 0], z.logsumexp(-1), entropy)))
    return torch.stack(results)


def assert_close(got, want, atol=2e-6):
    torch.testing.assert_close(got[:, :ENTROPY].double(), want[:, :ENTROPY], rtol=1e-6, atol=atol, equal_nan=True)
    torch.testing.assert_close(got[:, ENTROPY].double(), want[:, ENTROPY], rtol=1e-6, atol=2 * atol, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_keep_the_error_bound_that_is_stated(isa, dtype):
    for top, sign in ((0x42F00000, -1), (0x42800000, 1)):  # from -120 to 64, every 499th float
        bits = torch.arange(0, top + 1, 499, dtype=torch.int64)
        x = bits[: len(bits) // 64 * 64].int().view(torch.float32) * sign
        error = (native.powers_of_two(x, dtype).double() / x.double().exp2() - 1).abs()
        assert float(error.max()) <= POWER_ERRORS[isa][dtype != torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 16, 17, 64, 1000, 4099])
def test_rows_equal_float64_within_2e_6(isa, vocab, dtype):
    logits, ids, active = problem(vocab=vocab, dtype=dtype)
    assert_close(run(logits, ids, active), expected(logits, ids))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [131_072, 131_073, 151_936, 300_001])
def test_pieces_of_a_large_vocabulary_are_merged_without_loss(isa, vocab, dtype):
    logits, ids, active = problem(rows=1, vocab=vocab, dtype=dtype)
    logits[0][0, 0, 60_000:] -= 60  # pieces of very different weight
    ids[:, 0] = vocab - 1
    assert_close(run(logits, ids, active), expected(logits, ids))


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.7, 50.0])
def test_temperature_divides_the_logits(isa, temperature):
    logits, ids, active = problem()
    assert_close(run(logits, ids, active, temperature=temperature), expected(logits, ids, temperature))


def test_every_row_may_have_a_temperature_of_its_own(isa):
    logits, ids, active = problem()
    temperatures = torch.rand(2, 6, generator=torch.Generator().manual_seed(1)) + 0.3
    got = run(logits, ids, active, temperature=temperatures)
    assert_close(got, expected(logits, ids, temperatures.double()[..., None]))
    for place in ((0, 0), (1, 4)):
        alone = run(logits, ids, active, temperature=float(temperatures[place]))
        assert torch.equal(alone[(..., *place)], got[(..., *place)])


def test_rising_logits_move_the_reference_block_after_block(isa):
    logits, ids, active = problem(rows=2, vocab=20_000)
    logits[0][:] = torch.linspace(-300, 300, 20_000)
    logits[1][:] = torch.linspace(300, -300, 20_000)
    assert_close(run(logits, ids, active), expected(logits, ids))


@pytest.mark.parametrize("shift", [1e4, -1e4, 90.0, -90.0])
def test_a_common_shift_of_the_logits_costs_no_digits(isa, shift):
    logits, ids, active = problem(vocab=5000)
    logits = [x + shift for x in logits]
    assert_close(run(logits, ids, active), expected(logits, ids))


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_and_minus_infinite_logits_stay_exact(isa, dtype):
    (student, teacher), ids, active = problem(vocab=5000, dtype=dtype)
    student[:, 0, :4990] = -math.inf  # whole blocks without a finite logit
    student[:, 1, 1:] = -math.inf
    student[:, 2, 4321], teacher[:, 3, 17] = 1e4, -1e4
    student[:, 4, ::2] = -math.inf
    for row, token in enumerate((4995, 0, 4321, 17, 1)):
        ids[:, row] = token
    got = run([student, teacher], ids, active)
    assert_close(got, expected([student, teacher], ids))
    assert (got[0, LOGP, :, 1] > -1e-6).all()
    assert (got[0, ENTROPY, :, 1] < 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_numbers_there_are_overflow_nothing(isa, dtype):
    (student, teacher), ids, active = problem(vocab=3000, dtype=dtype)
    largest = torch.finfo(dtype).max
    student[:, 0, 2000], student[:, 1, 5:], student[:, 2] = largest, -largest, -largest
    teacher[:, 0], teacher[:, 1, 1], teacher[:, 2, 64:] = largest, -1e30, -1e9
    ids[:] = torch.tensor([2000, 2, 1, 2, 3, 4])
    got = run([student, teacher], ids, active)
    want = expected([student, teacher], ids)
    torch.testing.assert_close(got[:, [LOGP, ENTROPY]].double(), want[:, [LOGP, ENTROPY]], rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_small_terms_are_not_lost_beside_a_large_one(isa, dtype):
    top = torch.linspace(-2, 2, 33).to(dtype)
    for gap in (16.5, 16.75, 17.0):  # one term is up to half an ulp of the large one
        x = (top.float() - gap).to(dtype)[None, :, None].expand(1, 33, 40_000).contiguous()
        x[0, :, 100] = top
        ids, active = torch.full((1, 33), 100), torch.ones(1, 33, dtype=torch.bool)
        assert_close(run([x], ids, active), expected([x], ids))


def test_an_id_with_probability_zero_gives_minus_infinity(isa):
    (student, teacher), ids, active = problem()
    teacher[0, 1, ids[0, 1]] = -math.inf
    got = run([student, teacher], ids, active)
    assert got[1, LOGP, 0, 1] == -math.inf
    assert got[1, LSE:, 0, 1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [2085, 140_000])
@pytest.mark.parametrize("poison", ["nan at the start", "nan in the tail", "-nan", "+inf", "all -inf"])
def test_a_broken_row_gives_nan_for_itself_alone(isa, dtype, vocab, poison):
    (student, teacher), ids, active = problem(rows=2, vocab=vocab, dtype=dtype)
    clean = run([student, teacher], ids, active)
    row = student[1, 1]
    if poison == "all -inf":
        row[:] = -math.inf
    elif poison == "+inf":
        row[1234] = math.inf
    else:
        nan = torch.tensor(math.nan).copysign(torch.tensor(-1.0 if poison == "-nan" else 1.0))
        row[vocab - 1 if "tail" in poison else 0] = nan.to(dtype)
    got = run([student, teacher], ids, active)
    assert got[0, :, 1, 1].isnan().all()
    others = torch.ones(2, 2, 2, dtype=torch.bool)
    others[0, 1, 1] = False
    assert torch.equal(got.movedim(1, -1)[others], clean.movedim(1, -1)[others])


def test_of_masked_rows_nothing_is_read(isa):
    (student, teacher), ids, active = problem()
    temperatures = torch.ones(2, 6)
    want = run([student, teacher], ids, active, temperature=temperatures)
    active = torch.arange(12).reshape(2, 6) % 3 != 1
    student[~active], teacher[~active], ids[~active], temperatures[~active] = math.nan, math.nan, -100, math.nan
    got = run([student, teacher], ids, active, temperature=temperatures)
    assert torch.equal(got[..., active], want[..., active])
    assert torch.equal(got[..., ~active], torch.zeros(2, 3, 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [4099, 140_000])
def test_one_tensor_and_two_give_the_same_bits(isa, dtype, vocab):
    (student, teacher), ids, active = problem(rows=2, vocab=vocab, dtype=dtype)
    both = run([student, teacher], ids, active)
    assert torch.equal(run([student], ids, active), both[:1])
    assert torch.equal(run([teacher], ids, active), both[1:])
    mixed = run([student, teacher.float()], ids, active)
    assert torch.equal(mixed[:1], both[:1])
    assert_close(mixed, expected([student, teacher], ids))


@pytest.mark.parametrize("vocab", [4099, 300_001])
def test_bits_do_not_depend_on_threads_batch_or_place(isa, vocab):
    (student, _), ids, active = problem(rows=5, vocab=vocab, dtype=torch.bfloat16)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5, 16):
            torch.set_num_threads(threads)
            results.append(run([student], ids, active))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, results[0]) for x in results)
    moved = torch.empty(vocab + 3, dtype=torch.bfloat16)[3:].copy_(student[1, 4])[None, None]
    assert torch.equal(run([moved], ids[1:, 4:], active[1:, 4:]), results[0][..., 1:, 4:])


def test_log_probs_are_never_positive_and_entropies_never_negative(isa):
    (student, teacher), ids, active = problem(vocab=33, spread=30.0)
    ids = student.argmax(-1)
    got = run([student, teacher], ids, active, temperature=0.05)
    assert (got[:, LOGP] <= 0).all()
    assert (got[:, ENTROPY] >= 0).all()


def test_without_entropy_it_is_zero_and_the_rest_is_unchanged(isa):
    inputs = problem(vocab=140_000, rows=2)
    got, full = run(*inputs, entropy=False), run(*inputs)
    assert torch.equal(got[:, :ENTROPY], full[:, :ENTROPY])
    assert torch.equal(got[:, ENTROPY], torch.zeros(2, 2, 2))


def test_rows_of_any_strides_are_taken(isa):
    (student, teacher), ids, active = problem(rows=7)
    transposed = teacher.transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.full((2, 7, 1003), math.nan)
    wide[..., 1:1001] = student
    ids, active = ids[:, :-1].contiguous(), active[:, :-1].contiguous()
    got = run([wide[:, :-1, 1:1001], transposed[:, :-1]], ids, active)
    assert torch.equal(got, run([student[:, :-1].contiguous(), teacher[:, :-1].contiguous()], ids, active))
    same = run([student[:1, :1].expand(2, 6, 1000)], ids[:1, :1].expand(2, 6).contiguous(), active)
    assert torch.equal(same, same[:, :, :1, :1].expand_as(same))


def test_rows_may_lie_more_than_2_31_elements_apart(isa):
    far = 2**31 + 64
    memory = torch.empty(far + 1000, dtype=torch.float16)  # only what is written to takes up memory
    logits, ids, active = problem(rows=1, dtype=torch.float16)
    rows = memory.as_strided((2, 1, 1000), (far, 1000, 1)).copy_(logits[0])
    assert torch.equal(run([rows], ids, active), run(logits[:1], ids, active))


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
    logits, ids, active = problem()
    ids[1, 3], ids[1, 5], ids[0, 0] = bad, -7, -100
    active[0, 0] = False
    with pytest.raises(IndexError, match=rf"token_ids must lie in \[0, 1000\), got {bad} at position \(1, 3\)"):
        run(logits, ids, active)


def test_no_rows_give_an_empty_result():
    logits, ids, active = problem()
    assert run([x[:, :0] for x in logits], ids[:, :0], active[:, :0]).shape == (2, 3, 2, 0)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_loop_of_the_read_probe_looks_at_every_byte(isa, threads):
    memory = torch.zeros(5 * 2**18 + 64 * 5)
    for loop in range(len(native.read_loops())):
        assert native.read_probe(memory, threads, loop=loop) == 0
        for place in (0, 300_000, 5 * 2**18 - 1, len(memory) - 1):
            memory[place] = 1.5
            assert native.read_probe(memory, threads, loop=loop) != 0
            memory[place] = 0


def test_a_read_loop_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"loop must lie in \[0, \d\), got -1"):
        native.read_probe(torch.zeros(64), loop=-1)


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("STEPOPSD_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match=r"STEPOPSD_CPU_ISA must be one of portable.*got 'mmx'"):
        native.isa()
    with pytest.raises(ValueError, match="STEPOPSD_CPU_ISA"):
        run(*problem())


def test_the_fastest_instruction_set_is_the_default(monkeypatch):
    monkeypatch.delenv("STEPOPSD_CPU_ISA", raising=False)
    assert native.isa() == native.isas()[-1]


def test_other_devices_are_refused_with_a_reason():
    assert "cuda" in (native.availability("cuda") or "")
