"""Choice of the backend, and the reasons given when one is not available."""

from __future__ import annotations

import os

import pytest
import torch

from stepopsd.ops import dispatch
from stepopsd.ops.logprobs import token_logprobs
from stepopsd.ops.shaping import shape_advantages


def test_required_backends_are_available() -> None:
    """CI names the backends that must not be skipped; without the variable nothing is required."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in filter(None, os.environ.get("STEPOPSD_REQUIRE_BACKENDS", "").split(",")):
        assert dispatch.unavailable(name, "cpu" if name == "cpu" else device) is None


def test_explain_names_every_backend() -> None:
    reasons = dispatch.explain("cpu")
    assert set(reasons) == set(dispatch.BACKENDS)
    assert reasons["torch"] == "available"
    assert dispatch.explain("cuda")["cpu"] != "available"


def test_auto_prefers_the_kernel_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "unavailable", lambda *_: None)
    assert dispatch.resolve("auto", "cuda") == "triton"
    assert dispatch.resolve("auto", "cpu") == "cpu"
    assert dispatch.resolve("auto", "mps") == "torch"


def test_auto_falls_back_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "unavailable", lambda name, *_: None if name in ("torch", "cuda") else "no triton")
    assert dispatch.resolve("auto", "cuda") == "cuda"
    monkeypatch.setattr(dispatch, "unavailable", lambda name, *_: None if name == "torch" else "not built")
    assert dispatch.resolve("auto", "cuda") == "torch"
    assert dispatch.resolve("auto", "cpu") == "torch"


def test_float64_is_computed_by_torch() -> None:
    assert dispatch.resolve("auto", "cpu", torch.float64) == "torch"
    with pytest.raises(ValueError, match=r"backend 'cpu' is not available .*float64"):
        dispatch.resolve("cpu", "cpu", torch.float64)


def test_an_unavailable_backend_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_load", lambda _: "no compiler was found")
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match=r"backend 'cpu' is not available.*no compiler was found"):
        shape_advantages(x, x, torch.tensor([0]), torch.ones(1), backend="cpu")


def test_an_unknown_backend_is_refused() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="backend must be one of auto, triton, cuda, cpu, torch, got 'cudnn'"):
        shape_advantages(x, x, torch.tensor([0]), torch.ones(1), backend="cudnn")


def test_a_module_that_cannot_be_imported_gives_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._MODULES, "triton", "stepopsd.ops.no_such_module")
    dispatch._load.cache_clear()
    try:
        assert "no_such_module" in str(dispatch.unavailable("triton", "cpu"))
    finally:
        dispatch._load.cache_clear()


class WithoutGradients:
    """A backend module that scores, but has no gradient kernels."""

    @staticmethod
    def availability(device_type: str) -> str | None:
        return None

    score_rows = shape_rows = None


def test_torch_computes_gradients_in_place_of_a_backend_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    load = dispatch._load
    monkeypatch.setattr(dispatch, "_load", lambda name: WithoutGradients() if name == "cpu" else load(name))
    assert dispatch.resolve("cpu", "cpu") == "cpu"
    assert dispatch.resolve_gradients("cpu", "cpu") == "torch"
    assert dispatch.explain("cpu")["cpu"] == "available"
    assert dispatch.explain_gradients("cpu")["cpu"] == "computed by torch: stepopsd.ops.native has no gradient_rows"
    assert dispatch.explain_gradients("cpu")["torch"] == "available"
    logits = torch.randn(2, 7, requires_grad=True)
    ids = torch.tensor([3, 0])
    token_logprobs(logits, ids, backend="cpu").logprobs.sum().backward()
    assert logits.grad is not None
    want = torch.nn.functional.one_hot(ids, 7) - logits.detach().softmax(-1)
    torch.testing.assert_close(logits.grad, want)


def test_a_backend_with_gradients_computes_them_itself() -> None:
    assert dispatch.no_gradients("torch") is None
    assert dispatch.resolve_gradients("torch", "cpu") == "torch"
    with pytest.raises(ValueError, match="backend must be one of auto"):
        dispatch.resolve_gradients("fast", "cpu")
