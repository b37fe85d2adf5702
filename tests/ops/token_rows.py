"""Random (N, T) token values with masks, and the backends that have a kernel on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from stepopsd.ops import dispatch
from tests.ops.conftest import BackendUnderTest

NAN, INF = float("nan"), float("inf")
INTERPRETER_WARNINGS = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
PROPERTY = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def need(kernel: str, backend: BackendUnderTest) -> None:
    """Skip where the backend lacks the kernel."""
    reason = dispatch.lacks(backend.name, kernel)
    if reason is not None:
        pytest.skip(reason)


def examples(backend: BackendUnderTest) -> settings:
    """Few examples where Triton is interpreted."""
    interpreted = backend.name == "triton" and backend.device == "cpu"
    phases = [Phase.explicit, Phase.generate] if interpreted else list(Phase)
    return settings(PROPERTY, max_examples=6 if interpreted else 40, phases=phases)


def fixed_order(backend: BackendUnderTest) -> bool:
    """Whether the backend promises that a row's bits follow from its own values."""
    return backend.name != "torch"


@contextmanager
def small_blocks() -> Iterator[None]:
    """Blocks of the Triton kernels that short rows fill more than once; the interpreter is slow."""
    from stepopsd.ops.triton import future, oar

    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr(oar, "BLOCK", 32)
            patch.setattr(future, "BLOCK", 32)
        yield


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, NaN and the sign of zero included."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def masks(rows: int, width: int, share: float, rng: torch.Generator) -> torch.Tensor:
    return torch.rand(rows, width, generator=rng) < share


shapes = st.tuples(st.integers(0, 5), st.one_of(st.integers(0, 12), st.integers(13, 90)))
shares = st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0))
seeds = st.integers(0, 2**32)
