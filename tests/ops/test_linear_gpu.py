"""The hidden-state ops on a CUDA device: widening products, memory of one chunk, and nothing that waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stepopsd.ops import dispatch
from stepopsd.ops.linear import linear_token_logprobs
from stepopsd.ops.linear_loss import linear_grpo_loss
from tests.ops.linear_cases import errors, leaves, reference, tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(**sizes: Any) -> list[Tensor]:
    return [x.cuda() for x in tensors(dtype=torch.bfloat16, **sizes)]


@pytest.mark.parametrize("chunk_rows", [48, None])
def test_float32_logits_of_bf16_states(chunk_rows: int | None) -> None:
    hidden, weight, bias, ids, mask = on_gpu(n=2, t=64, h=128, v=1000)
    ours, exact = leaves(hidden, weight, bias), leaves(hidden.double(), weight.double(), bias.double())
    got = linear_token_logprobs(
        ours[0], ours[1], ids, bias=ours[2], mask=mask, fp32_logits=True, chunk_rows=chunk_rows
    ).logprobs
    want = reference(*exact, ids, 1.0)[0].where(mask, 0)
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=0)
    found, right = torch.autograd.grad(got.sum(), ours), torch.autograd.grad(want.sum(), exact)
    assert all(e <= 0.01 * float(y.norm()) for e, y in zip(errors(found, right), right, strict=True))


def test_one_chunk_of_logits_is_in_memory() -> None:
    hidden, weight, _, ids, _ = on_gpu(n=1, t=4096, h=64, v=32_000)
    hidden, weight = leaves(hidden, weight)
    linear_grpo_loss(hidden, weight, ids, torch.ones(ids.shape, device="cuda"), chunk_rows=256).loss.backward()
    hidden.grad = weight.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_grpo_loss(hidden, weight, ids, torch.ones(ids.shape, device="cuda"), chunk_rows=256).loss.backward()
    chunk, gradients = 256 * 32_000 * 2, hidden.nbytes + weight.nbytes * 3
    copies = 6 if dispatch.resolve_gradients("auto", "cuda") == "torch" else 0  # float32 copies of a chunk
    assert torch.cuda.max_memory_allocated() - before <= chunk * (1 + copies) + gradients + 2**24


def test_nothing_waits_for_the_gpu_where_the_count_is_known() -> None:
    if dispatch.resolve_gradients("auto", "cuda") == "torch":
        pytest.skip("the PyTorch backend waits once for the number of rows")
    hidden, weight, _, ids, mask = on_gpu(n=2, t=64, h=128, v=1000)
    advantages, bound = torch.ones(ids.shape, device="cuda"), int(mask.sum())

    def step() -> list[Tensor]:
        parts = leaves(hidden, weight)
        loss = linear_grpo_loss(*parts, ids, advantages, None, mask, max_active=bound, chunk_rows=32).loss
        rows = linear_token_logprobs(*parts, ids, mask=mask, max_active=bound, entropy=True)
        (loss * 0.5 + rows.logprobs.sum()).backward()
        return parts

    step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        parts = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(x.grad is not None and x.grad.isfinite().all() for x in parts)
