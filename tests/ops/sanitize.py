"""Tiny shapes through the GPU backends, for NVIDIA's compute-sanitizer.

    compute-sanitizer --tool memcheck --error-exitcode 1 python -m tests.ops.sanitize [backend ...]

`racecheck`, `synccheck` and `initcheck` are the other tools. Every result is compared with float64, so that a run that
computed nothing fails too. Exits with 2 where there is no GPU, or not the backend that was named.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stepopsd.ops import cuda, dispatch, torch_backend
from stepopsd.ops.segments import sort_steps

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
VOCABULARIES = (1, 7, 1000, 4099, 16_400, 70_000)  # without and with splits of the vocabulary
TOKENS = (0, 1, 33, 3000)
OPTIONS = {"alpha_clip": 0.2, "lambda_mix": 0.2, "weight_fn": "sigmoid"}


def cut(values: Tensor, offset: int) -> Tensor:
    """The same values `offset` elements into an allocation that ends with them."""
    memory = torch.empty(offset + values.numel(), dtype=values.dtype, device=values.device)
    return memory[offset:].view(values.shape).copy_(values)


def score_cases(device: str) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """Logits, ids and mask: every dtype, vocabularies with ragged ends, rows at every alignment."""
    rng = torch.Generator().manual_seed(0)
    for vocab in VOCABULARIES:
        for index, dtype in enumerate(DTYPES):
            for offset in (0, 1, 5):
                student, teacher = torch.randn((2, 1, 3, vocab), generator=rng).mul(3).to(device)
                pair = [cut(student.to(dtype), offset), cut(teacher.to(DTYPES[index - 1]), offset + 2)]
                ids = torch.randint(vocab, (1, 3), generator=rng)
                yield pair, ids.to(device), torch.tensor([[True, False, True]], device=device)


def score(score_rows: Callable[..., Tensor], device: str) -> int:
    """The number of calls made."""
    calls = 0
    for logits, ids, active in score_cases(device):
        wide = [x.double() for x in logits]
        want = torch_backend.score_rows(wide, ids, active, temperature=0.7, entropy=True)
        for entropy in (False, True):
            got = score_rows(logits, ids, active, temperature=0.7, entropy=entropy)
            channels = 3 if entropy else 2
            torch.testing.assert_close(got[:, :channels].double(), want[:, :channels], atol=1e-5, rtol=1e-6)
            calls += 1
    return calls


def shape(backend: dispatch.Backend, device: str) -> int:
    """The number of calls made."""
    rng, calls = torch.Generator().manual_seed(1), 0
    for tokens in TOKENS:
        student, teacher, advantages = torch.randn((3, tokens), generator=rng).to(device)
        student, teacher, advantages = (cut(x, 0) for x in (-student.abs(), -teacher.abs(), advantages))
        steps = torch.randint(-1, 6, (tokens,), generator=rng).to(device)
        segments = sort_steps(steps, torch.arange(tokens, device=device) // 100)
        for step_norm in ("equal_step_mean_abs", "equal_step_ratio", "none"):
            given = None if step_norm == "none" else segments
            arguments = (student, teacher, advantages, steps >= 0, given)
            got, want = (b.shape_rows(*arguments, step_norm=step_norm, **OPTIONS) for b in (backend, torch_backend))
            torch.testing.assert_close(got[0], want[0], atol=1e-6, rtol=1e-6)
            calls += 1
    return calls


def gradient(backend: dispatch.Backend, device: str) -> int:
    """The number of calls made: into other memory, in place, and a scaling."""
    rng, calls = torch.Generator().manual_seed(2), 0
    for (logits, _), ids, active in score_cases(device):
        coefficients = torch.randn((3, *ids.shape), generator=rng).to(device)
        want, exact = torch.empty_like(logits, dtype=torch.float64), logits.double()
        wide = torch_backend.score_rows([exact], ids, active, temperature=0.7, entropy=True, normaliser=True)
        torch_backend.gradient_rows(
            exact, ids, active, wide[0, 3:], coefficients.double(), temperature=0.7, out=want
        )  # fmt: skip
        scored = backend.score_rows([logits], ids, active, temperature=0.7, entropy=True, normaliser=True)
        other = cut(logits, logits.storage_offset() + 1)
        for out in (other, logits):
            backend.gradient_rows(logits, ids, active, scored[0, 3:], coefficients, temperature=0.7, out=out)
            digits = torch.finfo(out.dtype).eps
            torch.testing.assert_close(out.double(), want, atol=1e-5 + digits / 1e2, rtol=digits + 1e-5)
        backend.scale_rows(logits, torch.tensor(0.5, device=device))
        torch.testing.assert_close(logits.double(), want / 2, atol=1e-5 + digits / 1e2, rtol=digits + 1e-5)
        calls += 3
    return calls


def run(name: str, device: str) -> int:
    """The number of calls made, all of which agree with PyTorch."""
    backend = dispatch.load(name)
    calls = score(backend.score_rows, device) + shape(backend, device)
    if dispatch.no_gradients(name) is None:
        calls += gradient(backend, device)
    if name == "cuda":  # what devices without thread-block clusters use
        calls += score(functools.partial(cuda.score_rows, merge="workspace"), device)
    return calls


def main(names: list[str]) -> int:
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was run", file=sys.stderr)
        return 2
    # Each tensor in an allocation of its own, as large as it has to be: a read beyond its end is then an error.
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    for name in names or ["cuda", "triton"]:
        reason = dispatch.unavailable(name, "cuda")
        if reason is None:
            print(f"{name}: {run(name, 'cuda')} calls agree with PyTorch")
        else:
            print(f"{name}: left out, {reason}")
            if names:
                return 2
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
