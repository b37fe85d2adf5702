"""The CUDA C++ kernels on a real GPU, at real sizes. Run by `make gpu`; test_backends_agree.py has the small shapes."""

from __future__ import annotations

import pytest
import torch

from stepopsd.ops import cuda, dispatch, torch_backend
from stepopsd.ops.results import STATISTICS
from stepopsd.ops.segments import StepSegments, sort_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
VOCABULARIES = [32_000, 50_257, 128_256, 151_936]
OPTIONS = {"alpha_clip": 0.2, "lambda_mix": 0.2, "weight_fn": "sigmoid", "step_norm": "equal_step_mean_abs"}


@pytest.fixture(scope="module", autouse=True)
def _kernels_are_there() -> None:
    assert dispatch.unavailable("cuda", DEVICE) is None


def rows(count: int, vocab: int, dtype: torch.dtype, seed: int, offset: int = 0, pad: int = 0) -> torch.Tensor:
    """(1, count, V) normal logits, `offset` elements into memory that holds NaN wherever there is no logit."""
    rng = torch.Generator(DEVICE).manual_seed(seed)
    memory = torch.full((offset + count * (vocab + pad),), float("nan"), dtype=dtype, device=DEVICE)
    view = memory[offset:].view(1, count, vocab + pad)[..., :vocab]
    return view.copy_(torch.randn((1, count, vocab), device=DEVICE, generator=rng).mul_(3))


def ids_for(count: int, vocab: int) -> torch.Tensor:
    return torch.randint(vocab, (1, count), device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(7))


def everywhere(ids: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(ids, dtype=torch.bool)


def score(*logits: torch.Tensor, ids: torch.Tensor, active=None, temperature=0.9, entropy=True, **how) -> torch.Tensor:
    active = everywhere(ids) if active is None else active
    return cuda.score_rows(logits, ids, active, temperature=temperature, entropy=entropy, **how)


def expected(*logits: torch.Tensor, ids: torch.Tensor, active=None, temperature=0.9) -> torch.Tensor:
    """The same in float64, by PyTorch."""
    active = everywhere(ids) if active is None else active
    wide = [x.double() for x in logits]
    return torch_backend.score_rows(wide, ids, active, temperature=temperature, entropy=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_real_vocabularies_match_float64(vocab: int, dtype: torch.dtype) -> None:
    for offset, pad in ((0, 0), (3, 5)):
        student, teacher = rows(40, vocab, dtype, 0, offset, pad), rows(40, vocab, dtype, 1)
        ids = ids_for(40, vocab)
        got, want = score(student, teacher, ids=ids), expected(student, teacher, ids=ids)
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-6)
        assert (got[:, 0] <= 0).all()


@pytest.mark.parametrize("vocab", [1, 7, 1023, 4099, 16_384, 32_768, 65_537])
def test_vocabularies_around_the_splits_match_float64(vocab: int) -> None:
    for dtype in DTYPES:
        for offset in range(8):
            logits, ids = rows(5, vocab, dtype, 2, offset), ids_for(5, vocab)
            for merge in ("automatic", "workspace"):
                got = score(logits, ids=ids, merge=merge)
                torch.testing.assert_close(got.double(), expected(logits, ids=ids), atol=1e-5, rtol=1e-6)


def test_each_row_has_its_temperature_and_each_tensor_its_dtype() -> None:
    student, teacher = rows(30, 50_257, torch.bfloat16, 0), rows(30, 50_257, torch.float32, 1, 1)
    ids, temperature = ids_for(30, 50_257), torch.linspace(0.3, 2, 30, device=DEVICE)[None]
    got = score(student, teacher, ids=ids, temperature=temperature)
    want = expected(student, teacher, ids=ids, temperature=temperature.double())
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-6)


def test_large_logits_keep_their_digits() -> None:
    for sign in (1, -1):
        logits, ids = rows(8, 32_000, torch.float32, 0) + sign * 1e4, ids_for(8, 32_000)
        got, want = score(logits, ids=ids, temperature=1.0).double(), expected(logits, ids=ids, temperature=1.0)
        torch.testing.assert_close(got[:, ::2], want[:, ::2], atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(got[:, 1], want[:, 1], atol=2e-3, rtol=0)  # one ulp of fp32 at 1e4 is 1e-3


@pytest.mark.parametrize("vocab", [5000, 50_257, 151_936])
def test_the_bits_of_a_row_follow_from_its_values_alone(vocab: int) -> None:
    student, teacher, ids = rows(300, vocab, torch.bfloat16, 0), rows(300, vocab, torch.float16, 1), ids_for(300, vocab)
    whole = score(student, teacher, ids=ids)
    assert torch.equal(score(student, teacher, ids=ids, merge="workspace"), whole)
    assert torch.equal(score(student, ids=ids)[0], whole[0])
    assert torch.equal(score(student.transpose(0, 1), ids=ids.T.contiguous())[0, :, :, 0], whole[0, :, 0])
    for i, offset in ((0, 0), (1, 1), (7, 5), (299, 7)):
        moved = torch.empty(vocab + offset, dtype=torch.bfloat16, device=DEVICE)[offset:].view(1, 1, -1)
        moved.copy_(student[:, i : i + 1])
        assert torch.equal(score(moved, ids=ids[:, i : i + 1].clone())[0, :, 0, 0], whole[0, :, 0, i])


def test_rows_that_are_not_active_are_not_touched() -> None:
    logits, ids = rows(64, 151_936, torch.bfloat16, 0), ids_for(64, 99)
    active = torch.arange(64, device=DEVICE).view(1, 64) % 3 == 0
    temperature = torch.ones(1, 64, device=DEVICE)
    want = score(logits, ids=ids, active=active, temperature=temperature)
    logits[~active], ids[~active], temperature[~active] = float("nan"), -(10**12), float("nan")
    for merge in ("automatic", "workspace"):
        got = score(logits, ids=ids, active=active, temperature=temperature, merge=merge)
        assert torch.equal(got, want)
        assert got[:, :, ~active].eq(0).all()


def test_rows_beyond_two_billion_elements_are_addressed() -> None:
    count, vocab = 14_500, 151_936  # 2.2e9 logits
    if torch.cuda.mem_get_info()[0] < 14 << 30:
        pytest.skip("needs 14 GiB of free memory")
    logits = torch.zeros((1, count, vocab), dtype=torch.bfloat16, device=DEVICE)
    logits[0, -1, :1000] = torch.randn(1000, device=DEVICE).mul_(4)
    ids = ids_for(count, 1000)
    got, same = score(logits, logits[:, :1].expand(1, count, vocab), ids=ids).double()
    torch.testing.assert_close(got[:, :, -1:], expected(logits[:, -1:], ids=ids[:, -1:])[0], atol=1e-5, rtol=1e-6)
    assert torch.equal(got[:, :, :-1], same[:, :, :-1])


def test_broken_rows_and_unknown_ids_stay_alone() -> None:
    logits, ids = rows(8, 50_257, torch.bfloat16, 0), ids_for(8, 50_257)
    want = score(logits, ids=ids)
    logits[0, 1, 50_256], logits[0, 2, 7], logits[0, 3] = float("nan"), float("inf"), -float("inf")
    ids[0, 4], ids[0, 5] = 50_257, -1
    logits[0, 6, ::2], ids[0, 6] = -float("inf"), 2
    for merge in ("automatic", "workspace"):
        logprobs, sums, entropies = score(logits, ids=ids, merge=merge)[0, :, 0]
        assert logprobs.isnan().tolist() == [False, True, True, True, True, True, False, False]
        assert logprobs[6] == -float("inf")
        for plane in (sums, entropies):
            assert plane.isnan().tolist() == [False, True, True, True, False, False, False, False]
        for i in (0, 7):
            assert torch.equal(score(logits, ids=ids)[0, :, 0, i], want[0, :, 0, i])


def shape_case(tokens: int, seed: int = 0) -> tuple[list[torch.Tensor], StepSegments]:
    """Log-probs, advantages and mask of random trajectories; a tenth of the tokens is in no step."""
    rng = torch.Generator(DEVICE).manual_seed(seed)
    student, teacher, advantages = (torch.randn(tokens, device=DEVICE, generator=rng) for _ in range(3))
    places = torch.arange(tokens, device=DEVICE)
    steps = (places % 5000 // 170).where(torch.rand(tokens, device=DEVICE, generator=rng) > 0.1, -1)
    active = steps >= 0
    student.masked_fill_(~active, float("nan"))
    advantages[places % 97 == 0] = 0
    return [-student.abs(), -teacher.abs(), advantages, active], sort_steps(steps, places // 5000)


@pytest.mark.parametrize("step_norm", ["equal_step_mean_abs", "equal_step_ratio", "none"])
@pytest.mark.parametrize("weight_fn", ["sigmoid", "exp"])
@pytest.mark.parametrize("tokens", [1, 300, 70_001])
def test_shaping_matches_pytorch(tokens: int, weight_fn: str, step_norm: str) -> None:
    values, segments = shape_case(tokens)
    options = OPTIONS | {"weight_fn": weight_fn, "step_norm": step_norm}
    given = None if step_norm == "none" else segments
    planes, statistics = cuda.shape_rows(*values, given, **options)
    want, want_statistics = torch_backend.shape_rows(*values, given, **options)
    torch.testing.assert_close(planes, want, atol=1e-6, rtol=1e-6)
    assert torch.equal(planes[0, ~values[3]], values[2][~values[3]])
    got, wanted = (dict(zip(STATISTICS, x.tolist(), strict=True)) for x in (statistics, want_statistics))
    for name in ("count", "nonfinite", "steps"):
        assert got[name] == wanted[name]
    for name in ("at_low", "at_high", "scale_clamped"):  # a value next to an edge may fall on either side
        assert got[name] == pytest.approx(wanted[name], abs=1e-3)
    for name in set(STATISTICS) - {"count", "nonfinite", "steps", "at_low", "at_high", "scale_clamped"}:
        assert got[name] == pytest.approx(wanted[name], abs=1e-6, rel=1e-6), name


def test_shaping_has_the_same_bits_every_time() -> None:
    values, segments = shape_case(70_001)
    first = cuda.shape_rows(*values, segments, **OPTIONS)
    for _ in range(20):
        again = cuda.shape_rows(*values, segments, **OPTIONS)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_no_tokens_give_the_statistics_of_nothing() -> None:
    empty = torch.zeros(0, device=DEVICE)
    planes, statistics = cuda.shape_rows(empty, empty, empty, empty.bool(), None, **OPTIONS)
    assert planes.shape == (4, 0)
    wanted = dict.fromkeys(STATISTICS, 0.0) | {"scale_min": 1.0, "scale_max": 1.0}
    assert dict(zip(STATISTICS, statistics.tolist(), strict=True)) == wanted


def test_the_triton_kernels_agree() -> None:
    reason = dispatch.unavailable("triton", DEVICE)
    if reason is not None:
        pytest.skip(reason)
    triton = dispatch.load("triton")
    student, teacher = rows(200, 151_936, torch.bfloat16, 0), rows(200, 151_936, torch.bfloat16, 1)
    ids = ids_for(200, 151_936)
    theirs = triton.score_rows((student, teacher), ids, everywhere(ids), temperature=0.9, entropy=True)
    torch.testing.assert_close(score(student, teacher, ids=ids), theirs, atol=1e-5, rtol=1e-6)
    values, segments = shape_case(70_001)
    mine, other = (backend.shape_rows(*values, segments, **OPTIONS) for backend in (cuda, triton))
    torch.testing.assert_close(mine[0], other[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mine[1], other[1], atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("merge", ["automatic", "workspace"])
def test_a_cuda_graph_replays_the_op_on_new_values(merge: str) -> None:
    logits, ids = rows(64, 151_936, torch.bfloat16, 0), ids_for(64, 151_936)
    active, (values, segments) = everywhere(ids), shape_case(64)

    def step() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scored = score(logits, ids=ids, active=active, merge=merge)
        logprobs = scored[0, 0].reshape(-1)
        return scored, *cuda.shape_rows(logprobs, values[1], values[2], values[3], segments, **OPTIONS)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    logits.copy_(rows(64, 151_936, torch.bfloat16, 5))
    graph.replay()
    for mine, want in zip(captured, step(), strict=True):
        assert torch.equal(mine, want)


@pytest.mark.parametrize(("merge", "bytes_per_row"), [("automatic", 1024), ("workspace", 1024)])
def test_only_results_and_partial_sums_are_allocated(merge: str, bytes_per_row: int) -> None:
    student, teacher = (rows(256, 151_936, torch.bfloat16, seed) for seed in (0, 1))
    ids, active = ids_for(256, 9), torch.ones(1, 256, dtype=torch.bool, device=DEVICE)
    score(student, teacher, ids=ids, active=active, merge=merge)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    score(student, teacher, ids=ids, active=active, merge=merge)
    assert torch.cuda.max_memory_allocated() - before <= 2 * 256 * bytes_per_row + 8192


def test_the_current_stream_is_used() -> None:
    logits, ids = rows(8, 32_000, torch.bfloat16, 0), ids_for(8, 32_000)
    active, want = everywhere(ids), score(logits, ids=ids)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        late = logits * 1.0
        logits.fill_(0)
        got = score(late, ids=ids, active=active)
    torch.cuda.synchronize()
    assert torch.equal(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_another_device_leave_the_current_one_alone() -> None:
    logits, ids = rows(8, 32_000, torch.bfloat16, 0), ids_for(8, 32_000)
    moved = score(logits.to("cuda:1"), ids=ids.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert torch.equal(moved.to(DEVICE), score(logits, ids=ids))


def test_a_launch_that_cannot_be_queued_is_an_error_with_the_reason() -> None:
    ids = ids_for(4, 9)
    with pytest.raises(RuntimeError, match="the launch failed: invalid argument"):
        score(torch.empty((1, 4, 0), device=DEVICE), ids=ids)
    logits = rows(4, 9, torch.float32, 0)
    torch.testing.assert_close(score(logits, ids=ids).double(), expected(logits, ids=ids), atol=1e-5, rtol=1e-6)
