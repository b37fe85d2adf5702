"""The CUDA C++ backend where there is no GPU: what the built module holds, reasons, and refused launches."""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace

import pytest
import torch

from stepopsd.ops import cuda, dispatch, gradient_ops, losses, torch_backend
from stepopsd.ops.segments import sort_steps
from tests.ops import emulated_cuda, sanitize


@pytest.fixture
def module():
    """The native module with its CUDA kernels."""
    found = cuda._load()
    if isinstance(found, str) and not os.environ.get("STEPOPSD_REQUIRE_NVCC"):
        pytest.skip(found)
    assert not isinstance(found, str), found
    return found


def test_the_module_loads_without_a_driver_and_names_its_architectures(module):
    wanted = os.environ.get("STEPOPSD_CUDA_ARCHS", "80;90;100").split(";")
    assert cuda.architectures() == tuple(f"sm_{arch}" for arch in wanted)


def test_its_cuda_runtime_cannot_be_mistaken_for_that_of_torch(module):
    library = ctypes.CDLL(module.__file__)
    assert not hasattr(library, "cudaGetDeviceCount")
    assert hasattr(library, "PyInit__native")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_the_module_says_so(module):
    assert module.cuda_obstacle(0) == "there is no NVIDIA driver"
    compiled = ", ".join(cuda.architectures())
    assert cuda._obstacle(0) == f"there is no NVIDIA driver; the kernels were compiled for {compiled}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_launch_without_a_driver_is_an_error_with_the_reason(module):
    problem = module.CudaScore([(0, 0, 1, 1)], 0, 0, 1.0, 0, 1, 1, 8, False, False, 0, 0, 0)
    with pytest.raises(RuntimeError, match="the launch failed: CUDA driver version is insufficient"):
        problem.launch(0, 0)


def test_partial_results_of_long_rows_need_a_workspace(module):
    def workspace(vocab, tensors, merge):
        pair = [(0, 2, vocab, vocab)] * tensors
        return module.CudaScore(pair, 0, 0, 1.0, 0, 2, 3, vocab, True, False, 0, 0, merge).workspace

    assert workspace(9000, 2, 1) == 0
    sizes = [workspace(vocab, 2, 1) for vocab in (16_384, 32_768, 65_536, 151_936)]
    assert sizes == [sizes[0], 2 * sizes[0], 4 * sizes[0], 4 * sizes[0]]
    assert workspace(151_936, 1, 1) == sizes[-1] / 2 > 0


@pytest.mark.parametrize("tensors", [0, 3])
def test_one_or_two_tensors_are_scored(module, tensors):
    with pytest.raises(ValueError, match="one or two logits tensors"):
        module.CudaScore([(0, 0, 1, 1)] * tensors, 0, 0, 1.0, 0, 1, 1, 8, False, False, 0, 0, 0)


def test_cpu_tensors_are_refused():
    assert cuda.availability("cpu") == "the CUDA kernels compute CUDA tensors only, not cpu"


@pytest.fixture
def pretend(monkeypatch):
    """Pretends that the machine and the build are of some kind."""

    def apply(found, *, toolkit="13.0", device=True, obstacle=""):
        if found is None:
            found = SimpleNamespace(CudaScore=object, cuda_archs=[800, 900], cuda_obstacle=lambda _: obstacle)
        monkeypatch.setattr(cuda, "_load", lambda: found)
        monkeypatch.setattr(torch.version, "cuda", toolkit)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        cuda._obstacle.cache_clear()

    yield apply
    cuda._obstacle.cache_clear()


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"found": "the native module is not built; reinstall"}, "the native module is not built; reinstall"),
        ({"found": None, "toolkit": None}, "this torch is a build without CUDA"),
        ({"found": None, "device": False}, "torch sees no CUDA device"),
        ({"found": None, "device": False, "obstacle": "there is no NVIDIA driver"}, "there is no NVIDIA driver; "),
        ({"found": None, "obstacle": "an old driver"}, "an old driver; the kernels were compiled for sm_80, sm_90"),
        ({"found": None}, None),
    ],
)  # fmt: skip
def test_what_is_missing_is_the_reason(pretend, machine, reason):
    pretend(**machine)
    got = dispatch.unavailable("cuda", "cuda")
    assert (got is None) if reason is None else (reason in str(got))


def test_a_module_without_cuda_kernels_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(cuda.importlib, "import_module", lambda _: SimpleNamespace())
    reason = cuda._load.__wrapped__()
    assert reason.startswith("the native module was built without CUDA kernels; ")
    assert "STEPOPSD_CUDA=1" in reason


class Recorder:
    """Stands in for the native module: keeps what it was asked for, and writes nothing."""

    def __init__(self):
        self.made, self.launched = [], []

    def _problem(self, *arguments):
        self.made.append(arguments)
        return SimpleNamespace(workspace=10, launch=lambda *where: self.launched.append(where))

    CudaScore = CudaShape = CudaGradient = CudaScale = _problem


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(cuda, "_load", lambda: recorder)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    return recorder


def on_first_device(arguments):
    """CPU tensors have no device index."""
    return [0 if argument is None else argument for argument in arguments]


def test_logits_are_passed_by_address_and_stride_with_scratch_memory_and_stream(recorder):
    wide = torch.zeros((4, 2, 6, 9), dtype=torch.float16)
    student, teacher = wide[1].transpose(0, 1)[..., 1:], torch.zeros((6, 2, 8), dtype=torch.bfloat16)
    ids, active = torch.zeros((6, 2), dtype=torch.int64), torch.ones((6, 2), dtype=torch.bool)
    per_row = torch.ones(6, 2)
    out = cuda.score_rows([student, teacher], ids, active, temperature=per_row, entropy=True, merge="workspace")
    pair, *rest = recorder.made[0]
    assert pair == [(student.data_ptr(), 1, 9, 54), (teacher.data_ptr(), 2, 16, 8)]
    assert rest[:4] == [ids.data_ptr(), active.data_ptr(), 1.0, per_row.data_ptr()]
    assert rest[4:9] == [6, 2, 8, True, False]
    assert rest[9] == out.data_ptr()
    assert rest[11] == 1
    assert out.shape == (2, 3, 6, 2)
    assert recorder.launched[0][1] == 77
    cuda.score_rows([teacher], ids, active, temperature=0.5, entropy=False)
    assert recorder.made[1][3:5] == (0.5, 0)


@pytest.mark.parametrize("step_norm", ["equal_step_ratio", "none"])
def test_tokens_and_segments_are_passed_by_address(recorder, step_norm):
    floats, active = [torch.zeros(5) for _ in range(3)], torch.ones(5, dtype=torch.bool)
    segments = sort_steps(torch.zeros(5), torch.zeros(5)) if step_norm != "none" else None
    options = {"alpha_clip": 0.1, "lambda_mix": 0.3, "weight_fn": "exp", "step_norm": step_norm}
    planes, statistics = cuda.shape_rows(*floats, active, segments, **options)
    (made,) = recorder.made
    assert made[:5] == (*(x.data_ptr() for x in floats), active.data_ptr(), 5)
    assert made[5] == ([0, 0, 0, 0] if segments is None else [x.data_ptr() for x in segments.tensors])
    assert made[6:9] == (0.1, 0.3, 1)
    assert segments is None or made[9] == 1
    assert made[10:12] == (planes.data_ptr(), statistics.data_ptr())
    assert (planes.shape, statistics.shape) == ((4, 5), (17,))


def test_gradients_are_passed_by_address_and_stride_without_scratch_memory(recorder):
    logits, out = torch.zeros((6, 2, 8)), torch.zeros((2, 6, 9)).transpose(0, 1)[..., 1:]
    ids, active = torch.zeros((6, 2), dtype=torch.int64), torch.ones((6, 2), dtype=torch.bool)
    small, per_row = torch.zeros(5, 6, 2), torch.ones(6, 2)
    cuda.gradient_rows(logits, ids, active, small[:2], small[2:], temperature=per_row, out=out)
    cuda.scale_rows(out, factor := torch.tensor(0.5))
    assert recorder.made[0] == (
        (logits.data_ptr(), 0, 16, 8), ids.data_ptr(), active.data_ptr(), small.data_ptr(), small[2:].data_ptr(), 1.0,
        per_row.data_ptr(), 6, 2, 8, (out.data_ptr(), 0, 9, 54), None,
    )  # fmt: skip
    assert recorder.made[1] == ((out.data_ptr(), 0, 9, 54), factor.data_ptr(), 6, 2, 8, None)
    assert recorder.launched == [(77,), (77,)]


def test_the_bindings_take_what_the_launchers_pass(module, recorder):
    ids, floats = torch.zeros((1, 2), dtype=torch.int64), torch.zeros(2)
    cuda.score_rows([torch.zeros(1, 2, 8)], ids, ids.bool(), temperature=1.0, entropy=True)
    module.CudaScore(*on_first_device(recorder.made[0]))
    options = {"alpha_clip": 0.2, "lambda_mix": 0.2, "weight_fn": "sigmoid", "step_norm": "equal_step_mean_abs"}
    cuda.shape_rows(floats, floats, floats, floats.bool(), sort_steps(ids[0], ids[0]), **options)
    assert module.CudaShape(*on_first_device(recorder.made[1])).workspace > 0
    small, logits = torch.zeros(5, 1, 2), torch.zeros(1, 2, 8)
    cuda.gradient_rows(logits, ids, ids.bool(), small[:2], small[2:], temperature=1.0, out=logits)
    module.CudaGradient(*on_first_device(recorder.made[2]))
    cuda.scale_rows(logits, small[0, 0, 0])
    module.CudaScale(*on_first_device(recorder.made[3]))
    cuda.gradient_rows(logits, ids, ids.bool(), small[:2], small[2:], temperature=1.0, out=logits.half())
    with pytest.raises(ValueError, match="logits and gradient differ in dtype"):
        module.CudaGradient(*on_first_device(recorder.made[4]))


def test_nothing_is_launched_for_no_rows(recorder):
    none = torch.zeros((0, 2), dtype=torch.int64)
    out = cuda.score_rows([torch.zeros(0, 2, 8)], none, none.bool(), temperature=1.0, entropy=False)
    assert out.shape == (1, 3, 0, 2)
    nothing = torch.zeros(0, 2, 8)
    small = torch.zeros(5, 0, 2)
    cuda.gradient_rows(nothing, none, none.bool(), small[:2], small[2:], temperature=1.0, out=nothing)
    cuda.scale_rows(nothing, torch.tensor(0.5))
    assert recorder.made == []


def test_other_dtypes_are_refused(recorder):
    ids = torch.zeros((1, 2), dtype=torch.int64)
    with pytest.raises(TypeError, match=r"float32, float16 or bfloat16, got torch\.float64"):
        cuda.score_rows([torch.zeros(1, 2, 8).double()], ids, ids.bool(), temperature=1.0, entropy=False)


def test_what_the_sanitizer_runs_agrees_with_float64_on_an_emulated_gpu(monkeypatch):
    emulated_cuda.install(monkeypatch)
    assert sanitize.run("cuda", "cpu") == 390


@pytest.mark.parametrize("merge", ["automatic", "workspace"])
@pytest.mark.parametrize("loss", ["grpo", "cispo", "reinforce"])
def test_a_loss_is_scored_and_its_gradient_written_on_an_emulated_gpu(monkeypatch, loss, merge):
    emulated_cuda.install(monkeypatch)
    rng = torch.Generator().manual_seed(0)
    logits, ids = torch.randn((2, 3, 300), generator=rng) * 3, torch.randint(300, (2, 3), generator=rng)
    active, how = torch.rand((2, 3), generator=rng) < 0.8, {"temperature": 0.7}
    old, ref, advantages, weights = torch.randn((4, 2, 3), generator=rng) * 0.2
    want = torch_backend.score_rows([logits], ids, active, entropy=True, normaliser=True, **how)[0]
    old, ref = old + want[0], ref + want[0]
    options = losses.loss_options(loss, None, None, 0.0, 0.1, 0.02)
    terms = losses.policy_terms(want[0], want[2], old, ref, advantages, weights, active, options)
    coefficients = gradient_ops.coefficients(terms.logprob_slope, None, terms.entropy_slope, want[2])
    gradient = torch.empty_like(logits)
    torch_backend.gradient_rows(logits, ids, active, want[3:], coefficients, out=gradient, **how)
    scores = cuda.loss_rows(
        logits, ids, active, old, ref, advantages, weights, options, out=logits, merge=merge, **how
    )  # fmt: skip
    torch.testing.assert_close(scores[:3], want[:3], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(logits, gradient, atol=2e-6, rtol=2e-5)


def test_a_sequence_level_loss_is_refused():
    nothing, options = torch.zeros(1, 1), losses.loss_options("gspo", None, None, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="not 'gspo'"):
        cuda.loss_rows(
            torch.zeros(1, 1, 8), nothing.long(), nothing.bool(), None, None, nothing, nothing, options,
            temperature=1.0, out=torch.zeros(1, 1, 8),
        )  # fmt: skip


def test_a_refused_launch_is_an_error_with_the_reason(monkeypatch):
    emulated_cuda.install(monkeypatch)
    ids = torch.zeros((1, 2), dtype=torch.int64)
    with pytest.raises(RuntimeError, match="the launch failed: an error of the emulated device"):
        cuda.score_rows([torch.zeros(1, 2, 0)], ids, ids.bool(), temperature=1.0, entropy=False)


def test_a_wrong_result_stops_the_sanitizer_run():
    def wrong(*arguments, **options):
        return torch_backend.score_rows(*arguments, **options) + 1e-3

    with pytest.raises(AssertionError):
        sanitize.score(wrong, "cpu")
