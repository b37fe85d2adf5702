"""The Triton kernels on a real GPU, at real sizes. Run by `make gpu`; the small shapes are in test_triton_pair.py."""

from __future__ import annotations

import pytest
import torch

from stepopsd.ops.triton import pair_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCABULARIES = [32_000, 50_257, 128_256, 151_936]
OPTIONS = {"alpha_clip": 0.2, "lambda_mix": 0.2, "weight_fn": "sigmoid", "temperature": 0.9, "entropy": True}


def rows(count: int, vocab: int, dtype: torch.dtype, seed: int, pad: int = 0) -> torch.Tensor:
    rng = torch.Generator("cuda").manual_seed(seed)
    memory = torch.full((1, count, vocab + pad), float("nan"), dtype=dtype, device="cuda")
    return memory[..., :vocab].copy_(torch.randn((1, count, vocab), device="cuda", generator=rng).mul_(3))


def ids_for(count: int, vocab: int) -> torch.Tensor:
    return torch.randint(vocab, (1, count), device="cuda")


def run(student: torch.Tensor, teacher: torch.Tensor, ids: torch.Tensor, active=None, **options) -> torch.Tensor:
    advantages = torch.linspace(-1, 1, ids.numel(), device="cuda").view(ids.shape)
    active = torch.ones_like(ids, dtype=torch.bool) if active is None else active
    return pair_rows(student, teacher, ids, advantages, active, **{**OPTIONS, **options})


def statistics(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 log-probs and entropies."""
    logprobs = (logits.double() / OPTIONS["temperature"]).log_softmax(-1)
    return logprobs.gather(-1, ids[..., None])[..., 0], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_real_vocabularies_match_float64(vocab: int, dtype: torch.dtype) -> None:
    for pad in (0, 5):
        student, teacher, ids = rows(40, vocab, dtype, 0, pad), rows(40, vocab, dtype, 1), ids_for(40, vocab)
        got = run(student, teacher, ids).double()
        (s, s_entropy), (t, t_entropy) = statistics(student, ids), statistics(teacher, ids)
        for mine, want in ((got[3], s), (got[4], t), (got[2], t - s), (got[5], s_entropy), (got[6], t_entropy)):
            torch.testing.assert_close(mine, want, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("vocab", [50_257, 151_936])
def test_a_row_has_the_same_bits_in_any_batch_and_at_any_alignment(vocab: int) -> None:
    student, teacher = (rows(300, vocab, torch.bfloat16, seed) for seed in (0, 1))
    ids, active = ids_for(300, vocab), torch.ones(1, 300, dtype=torch.bool, device="cuda")
    whole = run(student, teacher, ids, active)
    for i in (0, 1, 7, 299):
        moved = torch.empty(vocab + 3, dtype=torch.bfloat16, device="cuda")[3:].view(1, 1, -1)
        moved.copy_(student[:, i : i + 1])
        alone = run(moved, teacher[:, i : i + 1].clone(), ids[:, i : i + 1].clone())
        assert torch.equal(alone[2:, 0, 0], whole[2:, 0, i])


def test_masked_rows_are_not_touched() -> None:
    student, teacher, ids = rows(64, 151_936, torch.bfloat16, 0), rows(64, 151_936, torch.bfloat16, 1), ids_for(64, 99)
    active = torch.arange(64, device="cuda").view(1, 64) % 3 == 0
    want = run(student, teacher, ids, active)
    student[~active], ids[~active] = float("nan"), -(10**12)
    got = run(student, teacher, ids, active)
    assert torch.equal(got, want)
    assert torch.equal(got[1:3][:, ~active].T.unique(dim=0).cpu(), torch.tensor([[1.0, 0.0]]))


def test_rows_beyond_two_billion_elements_are_addressed() -> None:
    count, vocab = 14_500, 151_936  # 2.2e9 logits
    if torch.cuda.mem_get_info()[0] < 14 << 30:
        pytest.skip("needs 14 GiB of free memory")
    student = torch.zeros((1, count, vocab), dtype=torch.bfloat16, device="cuda")
    student[0, -1, :1000] = torch.randn(1000, device="cuda").mul_(4)
    teacher, ids = torch.zeros_like(student[:, :1]).expand(1, count, vocab), ids_for(count, 1000)
    got = run(student, teacher, ids).double()
    torch.testing.assert_close(got[3, :, -1], statistics(student[:, -1:], ids[:, -1:])[0][0], atol=1e-5, rtol=1e-6)
    assert got[2, 0, :-1].eq(0).all()


def test_broken_rows_and_unknown_ids_stay_alone() -> None:
    student, teacher = (rows(6, 50_257, torch.bfloat16, seed) for seed in (0, 1))
    ids = ids_for(6, 50_257)
    student[0, 1, 50_256], student[0, 2, 7] = float("nan"), float("inf")
    teacher[0, 3], ids[0, 4] = -float("inf"), 50_257
    got = run(student, teacher, ids)
    assert got[0, 0].isnan().tolist() == [False, True, True, True, True, False]


def test_only_the_result_is_allocated() -> None:
    student, teacher = (rows(256, 151_936, torch.bfloat16, seed) for seed in (0, 1))
    ids = ids_for(256, 9)
    run(student, teacher, ids)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(student, teacher, ids)
    assert torch.cuda.max_memory_allocated() - before < 64 << 10


def test_the_current_stream_is_used() -> None:
    student, teacher, ids = rows(8, 32_000, torch.bfloat16, 0), rows(8, 32_000, torch.bfloat16, 1), ids_for(8, 32_000)
    want = run(student, teacher, ids)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = student * 1.0
        student.fill_(0)
        got = run(late, teacher, ids)
    torch.cuda.synchronize()
    assert torch.equal(got, want)


def test_sizes_and_options_do_not_compile_again() -> None:
    from stepopsd.ops.triton.kernels import pair_kernel

    def binaries() -> int:
        caches = getattr(pair_kernel, "device_caches", None)
        if caches is None:
            pytest.skip("this Triton keeps its compiled kernels elsewhere")
        return len(caches[torch.cuda.current_device()][0])

    def call(count: int, vocab: int, **options: float) -> None:
        run(*(rows(count, vocab, torch.bfloat16, seed) for seed in (0, 1)), ids_for(count, vocab), **options)

    call(3, 512)
    before = binaries()
    for count, vocab, temperature in ((1, 1024, 1.0), (17, 32_000, 0.5), (16, 8, 2.0)):
        call(count, vocab, temperature=temperature, lambda_mix=1.0, alpha_clip=1.0)
    assert binaries() == before
