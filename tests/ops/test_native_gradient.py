"""The native gradient and loss rows on every instruction set: values, places and threads, and what is read."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepopsd.ops import gradient_ops, losses, native, torch_backend

_MISSING = native.availability("cpu")
if _MISSING and not any(map(shutil.which, ("g++", "clang++", "c++"))):
    pytest.skip(_MISSING, allow_module_level=True)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ISAS = [] if _MISSING else native.isas()
TOKEN_LOSSES = [x for x in losses.LOSSES if x != "gspo"]
# A gradient has the size of a probability times a coefficient; rounding to the dtype comes on top.
ROUNDING = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("STEPOPSD_CPU_ISA", request.param)
    return request.param


def rows(batch=2, count=5, vocab=301, dtype=torch.float32, seed=0, masked=0.3):
    """Logits (batch, count, vocab), ids, active, and coefficients (3, batch, count)."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn((batch, count, vocab), generator=g) * 4).to(dtype)
    ids = torch.randint(vocab, (batch, count), generator=g)
    return logits, ids, torch.rand((batch, count), generator=g) >= masked, torch.randn((3, batch, count), generator=g)


def normaliser(logits, ids, active, temperature=1.0):
    scored = native.score_rows([logits], ids, active, temperature=temperature, entropy=True, normaliser=True)
    return scored[0, 3:].contiguous()


def gradient(logits, ids, active, coefficients, temperature=1.0, out=None):
    out = torch.full_like(logits, float("nan")) if out is None else out
    given = normaliser(logits, ids, active, temperature), coefficients
    native.gradient_rows(logits, ids, active, *given, temperature=temperature, out=out)
    return out


def expected(logits, ids, active, coefficients, temperature=1.0):
    """Formula by formula in float64."""
    divisor = temperature[..., None].double() if isinstance(temperature, torch.Tensor) else temperature
    log_p = (logits.double() / divisor).log_softmax(-1)
    a, b, c = coefficients.double()[..., None]
    chosen = torch.nn.functional.one_hot(ids, logits.shape[-1])
    return ((a * chosen + log_p.exp() * (b + c * log_p.clamp(min=-1e300))) / divisor).where(active[..., None], 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 16, 301, 4099])
def test_gradients_are_those_of_float64(isa, dtype, vocab):
    logits, ids, active, coefficients = rows(vocab=vocab, dtype=dtype)
    temperature = torch.linspace(0.5, 2.0, active.numel()).view(active.shape)
    for how in (0.7, temperature):
        got = gradient(logits, ids, active, coefficients, how)
        want = expected(logits, ids, active, coefficients, how)
        torch.testing.assert_close(got.double(), want, atol=2 * ROUNDING[dtype], rtol=2 * ROUNDING[dtype])
    assert not got[~active].any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 6), st.integers(1, 600), st.sampled_from(DTYPES))
def test_a_rows_bits_follow_from_the_row(seed, batch, count, vocab, dtype):
    logits, ids, active, coefficients = rows(batch, count, vocab, dtype, seed)
    whole = gradient(logits, ids, active, coefficients)
    for b, r in active.nonzero().tolist():
        part = [x[b : b + 1, r : r + 1].contiguous() for x in (logits, ids, active)]
        alone = gradient(*part, coefficients[:, b : b + 1, r : r + 1].contiguous())
        assert torch.equal(alone[0, 0], whole[b, r])


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_strided_and_threaded_have_the_same_bits(isa, dtype):
    logits, ids, active, coefficients = rows(vocab=1001, dtype=dtype)
    want = gradient(logits, ids, active, coefficients)
    wide = torch.full((2, 5, 1016), float("nan"), dtype=dtype)
    view = wide[..., 3:1004]
    view.copy_(logits)
    gradient(view, ids, active, coefficients, out=view)
    assert torch.equal(view, want)
    assert wide[..., :3].isnan().all()
    assert wide[..., 1004:].isnan().all()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(gradient(logits, ids, active, coefficients), want)
    finally:
        torch.set_num_threads(threads)


def test_rows_without_a_slope_are_zeroed_unread(isa):
    logits, ids, active, coefficients = rows(masked=0)
    given = normaliser(logits, ids, active)
    coefficients[:, 1, 2] = 0
    logits[1, 2] = float("nan")
    out = torch.full_like(logits, float("nan"))
    native.gradient_rows(logits, ids, active, given, coefficients, temperature=1.0, out=out)
    assert not out[1, 2].any()
    assert not out.isnan().any()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), "all -inf"])
def test_a_broken_row_is_nan_and_alone(isa, broken):
    logits, ids, active, coefficients = rows(masked=0)
    logits[0, 3] = -math.inf if broken == "all -inf" else logits[0, 3]
    if broken != "all -inf":
        logits[0, 3, 250] = broken
    got = gradient(logits, ids, active, coefficients)
    assert got[0, 3].isnan().all()
    assert got.isnan().any(-1).sum() == 1


def test_impossible_tokens_and_large_logits_stay_finite(isa):
    logits, ids, active, coefficients = rows(masked=0)
    logits[0, 0, :200], logits[1, 1] = -math.inf, logits[1, 1] * 2500
    ids[0, 0] = 300
    got = gradient(logits, ids, active, coefficients)
    torch.testing.assert_close(got.double(), expected(logits, ids, active, coefficients), atol=2e-6, rtol=2e-5)
    assert not got[0, 0, :200].any()


def test_a_wrong_id_is_named_before_anything_is_written():
    logits, ids, active, coefficients = rows(masked=0)
    given, out = normaliser(logits, ids, active), torch.full_like(logits, 7.0)
    ids[1, 4] = 301
    with pytest.raises(IndexError):
        native.gradient_rows(logits, ids, active, given, coefficients, temperature=1.0, out=out)
    nothing = torch.zeros(active.shape)
    with pytest.raises(IndexError):
        native.loss_rows(
            logits, ids, active, None, None, nothing, nothing, options("grpo"), temperature=1.0, out=out
        )  # fmt: skip
    assert (out == 7).all()


def test_scaling_rounds_once_and_leaves_one_alone():
    logits, *_ = rows(dtype=torch.bfloat16)
    want = (logits.float() * 0.3).bfloat16()
    view = torch.zeros(2, 5, 320, dtype=torch.bfloat16)[..., 5:306]
    view.copy_(logits)
    native.scale_rows(view, torch.tensor(0.3))
    assert torch.equal(view, want)
    native.scale_rows(view, torch.tensor(1.0))
    assert torch.equal(view, want)


def options(loss):
    dual = 1.5 if loss in ("grpo", "dr_grpo", "dapo", "bnpo") else 0.0
    return losses.loss_options(loss, None, None, dual, 0.1, 0.02)


@pytest.mark.parametrize("loss", TOKEN_LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["all", "nothing"])
def test_one_visit_equals_scores_slopes_and_gradient(isa, loss, dtype, given):
    logits, ids, active, _ = rows(vocab=2003, dtype=dtype)
    scored = native.score_rows([logits], ids, active, temperature=0.8, entropy=True, normaliser=True)[0]
    g = torch.Generator().manual_seed(1)
    old, ref, advantages, weights = torch.randn((4, *ids.shape), generator=g) * 0.3
    old, ref = (old + scored[0], ref + scored[0]) if given == "all" else (None, None)
    how = options(loss)
    if old is None:
        how = losses.loss_options(loss, None, None, how.dual_clip, 0.0, 0.0)
    for x in (old, ref, advantages, weights):
        if x is not None:
            x[~active] = float("nan")  # nothing of them is read there
    terms = losses.policy_terms(
        scored[0], scored[2], *(None if x is None else x.where(active, 0) for x in (old, ref)),
        advantages.where(active, 0), weights.where(active, 0), active, how,
    )  # fmt: skip
    coefficients = gradient_ops.coefficients(terms.logprob_slope, None, terms.entropy_slope, scored[2])
    exact = torch.empty(logits.shape, dtype=torch.float64)
    torch_backend.gradient_rows(
        logits.double(), ids, active, scored[3:].double(), coefficients.double(), temperature=0.8, out=exact
    )
    for out in (torch.full_like(logits, float("nan")), logits):
        rows_scored = native.loss_rows(
            logits, ids, active, old, ref, advantages, weights, how, temperature=0.8, out=out
        )
        assert torch.equal(rows_scored, scored)
        torch.testing.assert_close(out.double(), exact, atol=2 * ROUNDING[dtype], rtol=2 * ROUNDING[dtype])


def test_a_sequence_level_loss_is_refused():
    logits, ids, active, _ = rows()
    nothing, how = torch.zeros(active.shape), losses.loss_options("gspo", None, None, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="not 'gspo'"):
        native.loss_rows(logits, ids, active, None, None, nothing, nothing, how, temperature=1.0, out=logits)
