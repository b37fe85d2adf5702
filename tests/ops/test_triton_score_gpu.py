"""The Triton score kernels on a real GPU, at real sizes, run by `make gpu`; test_triton_score.py has small shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stepopsd.ops.triton import score_rows
from stepopsd.ops.triton.table import Launch, launch_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
VOCABULARIES = [32_000, 50_257, 128_256, 151_936]
TEMPERATURE = 0.9


def rows(count: int, vocab: int, dtype: torch.dtype, seed: int, pad: int = 0) -> torch.Tensor:
    rng = torch.Generator("cuda").manual_seed(seed)
    memory = torch.full((1, count, vocab + pad), float("nan"), dtype=dtype, device="cuda")
    return memory[..., :vocab].copy_(torch.randn((1, count, vocab), device="cuda", generator=rng).mul_(3))


def ids_for(count: int, vocab: int) -> torch.Tensor:
    return torch.randint(vocab, (1, count), device="cuda", generator=torch.Generator("cuda").manual_seed(7))


def run(*logits: torch.Tensor, ids: torch.Tensor, active: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    active = torch.ones_like(ids, dtype=torch.bool) if active is None else active
    return score_rows(logits, ids, active, **{"temperature": TEMPERATURE, "entropy": True, **options})


def expected(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(3, 1, R) float64, a few rows at a time."""
    parts = []
    for x, i in zip(logits.split(8, 1), ids.split(8, 1), strict=True):
        z = x.double() / TEMPERATURE
        logp = z.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        parts.append(torch.stack((logp.gather(-1, i[..., None])[..., 0], z.logsumexp(-1), entropy)))
    return torch.cat(parts, -1)


def assert_rows(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_real_vocabularies_match_float64(vocab: int, dtype: torch.dtype) -> None:
    for pad in (0, 5):
        x, y, ids = rows(40, vocab, dtype, 0, pad), rows(40, vocab, dtype, 1), ids_for(40, vocab)
        assert_rows(run(x, y, ids=ids), torch.stack((expected(x, ids), expected(y, ids))))


@pytest.mark.parametrize(
    "changes", [{"threads": 32}, {"threads": 256}, {"groups": 1}, {"groups": 8}, {"polynomial": 2}], ids=str
)
def test_other_launches_match_float64(changes: dict[str, int]) -> None:
    launch = replace(launch_for(torch.device("cuda")), **changes)
    x, ids = rows(40, 50_257, torch.bfloat16, 0), ids_for(40, 50_257)
    assert_rows(run(x, ids=ids, launch=launch)[0], expected(x, ids))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [5_003, 50_257, 151_936])
def test_a_row_has_the_same_bits_in_any_batch_and_at_any_alignment(vocab: int, dtype: torch.dtype) -> None:
    x, y, ids = rows(300, vocab, dtype, 0), rows(300, vocab, dtype, 1), ids_for(300, vocab)
    pair = run(x, y, ids=ids)
    assert torch.equal(run(y, x, ids=ids), pair.flip(0))
    assert torch.equal(run(x, y, ids=ids, entropy=False)[:, :2], pair[:, :2])
    for row in (0, 1, 7, 299):
        for lead in range(8):
            moved = torch.empty(vocab + lead, dtype=dtype, device="cuda")[lead:].view(1, 1, -1)
            moved.copy_(x[:, row : row + 1])
            alone = run(moved, ids=ids[:, row : row + 1].contiguous())
            assert torch.equal(alone[0, :, 0, 0], pair[0, :, 0, row])


def test_a_temperature_has_the_same_bits_as_a_number_and_as_a_tensor() -> None:
    x, ids = rows(64, 50_257, torch.bfloat16, 0), ids_for(64, 50_257)
    for temperature in (0.1, 0.7, 1.3):
        own = torch.full((1, 64), temperature, device="cuda")
        assert torch.equal(run(x, ids=ids, temperature=own), run(x, ids=ids, temperature=temperature))


def test_masked_rows_are_not_touched() -> None:
    x, y, ids = rows(64, 151_936, torch.bfloat16, 0), rows(64, 151_936, torch.bfloat16, 1), ids_for(64, 99)
    active = torch.arange(64, device="cuda").view(1, 64) % 3 == 0
    want = run(x, y, ids=ids, active=active)
    x[~active], ids[~active] = float("nan"), -(10**12)
    got = run(x, y, ids=ids, active=active)
    assert torch.equal(got, want)
    assert got[:, :, ~active].eq(0).all()


def test_rows_beyond_two_billion_elements_are_addressed() -> None:
    count, vocab = 14_500, 151_936  # 2.2e9 logits
    if torch.cuda.mem_get_info()[0] < 14 << 30:
        pytest.skip("needs 14 GiB of free memory")
    x = torch.zeros((1, count, vocab), dtype=torch.bfloat16, device="cuda")
    x[0, -1, :1000] = torch.randn(1000, device="cuda").mul_(4)
    same, ids = torch.zeros_like(x[:, :1]).expand(1, count, vocab), ids_for(count, 1000)
    got = run(x, same, ids=ids)
    assert_rows(got[0, :, :, -1:], expected(x[:, -1:], ids[:, -1:]))
    assert torch.equal(got[0, :, :, :-1], got[1, :, :, :-1])


def test_more_rows_than_other_grid_axes_have() -> None:
    x, ids = rows(200_003, 17, torch.bfloat16, 0), ids_for(200_003, 17)
    got = run(x, ids=ids)[0]
    for part in (slice(0, 8), slice(65_530, 65_540), slice(199_995, 200_003)):
        assert_rows(got[..., part], expected(x[:, part], ids[:, part]))


def test_broken_rows_and_unknown_ids_stay_alone() -> None:
    x, y, ids = rows(6, 50_257, torch.bfloat16, 0), rows(6, 50_257, torch.bfloat16, 1), ids_for(6, 50_257)
    x[0, 1, 50_256], x[0, 2, 7] = float("nan"), float("inf")
    y[0, 3], ids[0, 4] = -float("inf"), 50_257
    for launch in (None, Launch(polynomial=2)):
        got = run(x, y, ids=ids, launch=launch)
        assert got[0, 0, 0].isnan().tolist() == [False, True, True, False, True, False]
        assert got[0, 1, 0].isnan().tolist() == [False, True, True, False, False, False]
        assert got[1, 2, 0].isnan().tolist() == [False, False, False, True, False, False]


def test_a_masked_vocabulary_has_a_finite_entropy() -> None:
    x, ids = rows(8, 151_936, torch.bfloat16, 0), ids_for(8, 1000)
    x[..., 1000:] = -float("inf")
    for launch in (None, Launch(polynomial=2)):
        got = run(x, ids=ids, launch=launch)[0]
        assert_rows(got, expected(x[..., :1000], ids))


def test_only_the_result_and_the_splits_are_allocated() -> None:
    x, ids = rows(256, 151_936, torch.bfloat16, 0), ids_for(256, 9)
    run(x, x, ids=ids)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(x, x, ids=ids)
    assert torch.cuda.max_memory_allocated() - before <= 2 * 256 * 4 * (3 + 4 * 8) + 2048


def test_the_current_stream_is_used() -> None:
    x, ids = rows(8, 32_000, torch.bfloat16, 0), ids_for(8, 32_000)
    want = run(x, ids=ids)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = x * 1.0
        x.fill_(0)
        got = run(late, ids=ids)
    torch.cuda.synchronize()
    assert torch.equal(got, want)


def test_a_cuda_graph_replays_the_op_on_new_values() -> None:
    x, ids = rows(64, 151_936, torch.bfloat16, 0), ids_for(64, 151_936)
    run(x, ids=ids)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(x, ids=ids)
    x.copy_(rows(64, 151_936, torch.bfloat16, 5))
    graph.replay()
    assert torch.equal(got, run(x, ids=ids))


def test_sizes_and_options_do_not_compile_again() -> None:
    from stepopsd.ops.triton.score_kernels import merge_kernel, score_kernel

    def binaries() -> int:
        caches = [getattr(kernel, "device_caches", None) for kernel in (score_kernel, merge_kernel)]
        if None in caches:
            pytest.skip("this Triton keeps its compiled kernels elsewhere")
        return sum(len(cache[torch.cuda.current_device()][0]) for cache in caches if cache is not None)

    def call(count: int, vocab: int, tensors: int, **options: Any) -> None:
        logits = [rows(count, vocab, torch.bfloat16, seed) for seed in range(tensors)]
        run(*logits, ids=ids_for(count, vocab), **options)

    call(3, 32_768, 2)
    before = binaries()
    for count, vocab, tensors, options in (
        (1, 1024, 1, {}),
        (17, 32_000, 2, {"temperature": 0.5}),
        (16, 8, 1, {"normaliser": True}),
        (128, 151_936, 2, {"temperature": 2.0}),
    ):
        call(count, vocab, tensors, **options)
    assert binaries() == before
