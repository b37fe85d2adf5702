"""token_logprobs: one model's log-probs, the same bits as in the pair, and the errors for bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stepopsd
from stepopsd.ops.logprobs import token_logprobs
from stepopsd.ops.shaping import shape_advantages
from tests.ops.conftest import BackendUnderTest
from tests.ops.strategies import lay_out


def rows(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 37, generator=rng).to(device), torch.randint(37, (2, 3), generator=rng).to(device)


def test_equals_log_softmax(backend: BackendUnderTest) -> None:
    logits, ids = rows(backend.device)
    got = token_logprobs(logits, ids, temperature=0.7, entropy=True, backend=backend.name)
    want = (logits.double() / 0.7).log_softmax(-1)
    assert got.entropy is not None
    torch.testing.assert_close(got.logprobs.double(), want.gather(-1, ids[..., None])[..., 0], atol=4e-6, rtol=0)
    torch.testing.assert_close(got.lse.double(), (logits.double() / 0.7).logsumexp(-1), atol=4e-6, rtol=0)
    torch.testing.assert_close(got.entropy.double(), -(want.exp() * want).sum(-1), atol=1e-5, rtol=0)


def test_one_temperature_per_token(backend: BackendUnderTest) -> None:
    logits, ids = rows(backend.device)
    temperatures = torch.linspace(0.3, 2.0, 6, device=backend.device).view(2, 3)
    got = token_logprobs(logits, ids, temperature=temperatures, backend=backend.name)
    want = (logits.double() / temperatures[..., None]).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(got.logprobs.double(), want, atol=8e-6, rtol=0)
    assert got.entropy is None


@pytest.mark.parametrize("layout", ["contiguous", "shifted", "padded", "three_strides"])
def test_masked_tokens_are_not_read(backend: BackendUnderTest, layout: str) -> None:
    values, ids = rows()
    mask = torch.tensor([[True, False, True], [False, True, True]])
    values[~mask], ids[~mask] = float("nan"), 2**62
    logits = lay_out(values, layout)
    if layout == "three_strides":
        mask, ids = (x[:, None].expand(2, 2, 3) for x in (mask, ids))
    got = token_logprobs(
        logits.to(backend.device), ids.to(backend.device), mask=mask.to(backend.device), backend=backend.name
    )
    assert (got.logprobs.cpu()[~mask] == 0).all()
    assert (got.lse.cpu()[~mask] == 0).all()
    assert (got.logprobs.cpu()[mask] < 0).all()


def test_the_teacher_may_be_scored_and_freed_first(backend: BackendUnderTest) -> None:
    rng = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, 3, 300, generator=rng).bfloat16().to(backend.device) for _ in range(2))
    ids = torch.randint(300, (2, 3), generator=rng).to(backend.device)
    advantages = torch.randn(2, 3, generator=rng).to(backend.device)
    steps = torch.tensor([[0, 0, 1], [0, 1, 1]], device=backend.device)
    options: dict[str, Any] = {"trajectory_ids": steps[:, 0], "backend": backend.name}
    at_once = shape_advantages(student, teacher, ids, advantages, steps, **options)
    teacher_logprobs = token_logprobs(teacher, ids, backend=backend.name).logprobs
    student_logprobs = token_logprobs(student, ids, backend=backend.name).logprobs
    staged = shape_advantages(
        None, None, None, advantages, steps, student_logprobs=student_logprobs, teacher_logprobs=teacher_logprobs,
        **options,
    )  # fmt: skip
    if backend.name != "torch":  # PyTorch may sum the rows of another batch in another order
        assert torch.equal(at_once.teacher_logprobs, teacher_logprobs)
        assert torch.equal(at_once.advantages, staged.advantages)
    torch.testing.assert_close(at_once.advantages, staged.advantages)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3)}, ValueError, r"token_ids must have shape \(2,\)"),
        ({"logits": torch.zeros(2, 3, 7).int()}, TypeError, "logits must be torch.bfloat16"),
        ({"mask": torch.zeros(2, 3)}, TypeError, "mask must be torch.bool, got torch.float32"),
        ({"mask": torch.zeros(3, 2).bool()}, ValueError, r"mask must have shape \(2, 3\)"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite and greater than 0, got -1.0"),
        ({"temperature": torch.ones(2)}, ValueError, r"temperature must have shape \(2, 3\)"),
        ({"temperature": torch.ones(2, 3).double()}, TypeError, "temperature must be torch.float32"),
        ({"token_ids": torch.full((2, 3), 7)}, IndexError, r"token_ids must lie in \[0, 7\), got 7 at position"),
        ({"backend": "fast"}, ValueError, "backend must be one of auto, .* got 'fast'"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.zeros(2, 3, 7), "token_ids": torch.zeros(2, 3, dtype=torch.int64), **changes}
    logits, ids = arguments.pop("logits"), arguments.pop("token_ids")
    with pytest.raises(error, match=message):
        token_logprobs(logits, ids, **arguments)


def test_the_package_offers_it() -> None:
    assert stepopsd.token_logprobs is token_logprobs
