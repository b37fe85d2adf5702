"""Backends as test parameters: one that this machine lacks is skipped with the reason that dispatch gives.

Triton's interpreter is made to round as hardware does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from stepopsd.ops import dispatch


@dataclass(frozen=True)
class BackendUnderTest:
    """A backend and the device its tensors must be on."""

    name: str
    device: str


@pytest.fixture(params=dispatch.BACKENDS, scope="session")
def backend(request: pytest.FixtureRequest) -> BackendUnderTest:
    name = str(request.param)
    device = "cuda" if name == "cuda" or (name == "triton" and torch.cuda.is_available()) else "cpu"
    reason = dispatch.unavailable(name, device)
    if reason is not None:
        pytest.skip(reason)
    return BackendUnderTest(name, device)


@pytest.fixture(scope="session", autouse=True)
def interpreted_bf16_is_rounded() -> Iterator[None]:
    """Triton's interpreter cuts off the digits that do not fit into bf16; hardware rounds to nearest even."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None:
            import triton.language as tl
            from triton.runtime import interpreter

            convert = interpreter._convert_float

            def rounding(values: Any, source: Any, target: Any, mode: Any) -> Any:
                if (source, target) == (tl.float32, tl.bfloat16):
                    return torch.from_numpy(values.copy()).bfloat16().view(torch.uint16).numpy()
                return convert(values, source, target, mode)

            patch.setattr(interpreter, "_convert_float", rounding)
        yield
