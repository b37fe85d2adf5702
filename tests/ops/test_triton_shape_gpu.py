"""The shape kernel on a real GPU: graphs, streams, launches. Run by `make gpu`; numbers are in test_triton_shape.py."""

from __future__ import annotations

import pytest
import torch

from stepopsd.ops import torch_backend
from stepopsd.ops.segments import StepSegments, sort_steps
from stepopsd.ops.triton.shape import shape_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPTIONS = {"alpha_clip": 0.2, "lambda_mix": 0.5, "weight_fn": "sigmoid", "step_norm": "equal_step_mean_abs"}
Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, StepSegments]


def make(tokens: int, seed: int = 0, trajectories: int = 40) -> Tokens:
    rng = torch.Generator("cuda").manual_seed(seed)
    student, teacher, advantages = (torch.randn(tokens, device="cuda", generator=rng) for _ in range(3))
    steps = torch.randint(-1, 20, (tokens,), device="cuda", generator=rng)
    keys = torch.randint(trajectories, (tokens,), device="cuda", generator=rng)
    return student, teacher, advantages, steps >= 0, sort_steps(steps, keys)


def assert_equal(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("tokens", [8_192, 300_000])
def test_large_calls_match_pytorch_and_themselves(tokens: int) -> None:
    x = make(tokens, trajectories=tokens // 100)
    planes, statistics = first = shape_rows(*x, **OPTIONS)
    for _ in range(50):  # programs finish in another order each time
        assert_equal(shape_rows(*x, **OPTIONS), first)
    want, numbers = torch_backend.shape_rows(*x, **OPTIONS)
    torch.testing.assert_close(planes, want, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(statistics, numbers, atol=2e-6, rtol=2e-6)


def test_a_captured_call_can_be_replayed() -> None:
    x, other = make(8_192), make(8_192, seed=1)
    want = shape_rows(*other, **OPTIONS)  # compiles, too
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = shape_rows(*x, **OPTIONS)
    for mine, theirs in zip((*x[:4], *x[4].tensors), (*other[:4], *other[4].tensors), strict=True):
        mine.copy_(theirs)
    for _ in range(20):
        result[0].fill_(float("nan"))
        graph.replay()
        assert_equal(result, want)


def test_calls_on_several_streams_do_not_meet() -> None:
    inputs = [make(20_000, seed) for seed in range(4)]
    want = [shape_rows(*x, **OPTIONS) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    got = []
    for _ in range(20):
        for x, stream in zip(inputs, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(shape_rows(*x, **OPTIONS))
    torch.cuda.synchronize()
    for i, result in enumerate(got):
        assert_equal(result, want[i % len(want)])


def test_nothing_waits_for_the_device() -> None:
    x = make(8_192)
    shape_rows(*x, **OPTIONS)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        shape_rows(*x, **OPTIONS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sizes_and_options_do_not_compile_again() -> None:
    from stepopsd.ops.triton.shape_kernels import shape_kernel

    def binaries() -> int:
        caches = getattr(shape_kernel, "device_caches", None)
        if caches is None:
            pytest.skip("this Triton keeps its compiled kernels elsewhere")
        return len(caches[torch.cuda.current_device()][0])

    shape_rows(*make(16), **OPTIONS)
    before = binaries()
    for tokens, mix in ((1, 0.5), (17, 1.0), (4_096, 0.1)):
        student, *rest = make(tokens + 1)
        shape_rows(student[1:], *(x[:-1] for x in rest[:3]), make(tokens)[4], **{**OPTIONS, "lambda_mix": mix})
    assert binaries() == before
