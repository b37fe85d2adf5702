"""The op as a folder for the ``kernels`` package: complete without ours, equal to it, and no clash beside it."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.util
import inspect
import json
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stepopsd
from stepopsd.experiments.hub_kernel import DEVICES, relocate, write_hub_kernel
from stepopsd.ops import dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = [name for name in ("torch", "triton") if dispatch.unavailable(name, DEVICE) is None]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "kernel"
    write_hub_kernel(out)
    return out


def load_folder(repository, device="cpu"):
    """As ``kernels`` does it: the variant's folder, imported under the id in its metadata."""
    import importlib.util
    import json
    import sys

    folder = repository / "build" / f"torch-{device}"
    name = json.loads((folder / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_kernels(repository):
    import kernels

    return kernels.get_local_kernel(repository, backend="cpu")


def results(op, backend):
    """Everything that a few calls return, from seeded inputs."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 2, 6, 40, generator=generator).to(device)
    ids = torch.randint(40, (2, 6), generator=generator).to(device)
    steps = torch.tensor([[0, 0, 1, 1, -1, 2], [0, 1, 1, 1, 2, 2]], device=device)
    trajectories = torch.tensor([[0] * 6, [1] * 6], device=device)
    advantages = torch.randn(2, 6, generator=generator).to(device)
    shaped = op.shape_advantages(
        student, teacher, ids, advantages, step_ids=steps, trajectory_ids=trajectories, entropy=True, backend=backend
    )
    scored = op.token_logprobs(student.bfloat16(), ids, mask=steps >= 0, entropy=True, backend=backend)
    leaf = student.clone().requires_grad_()
    loss = op.grpo_loss(leaf, ids, advantages, old_logprobs=shaped.student_logprobs, mask=steps >= 0, backend=backend)
    loss.loss.backward()
    tensors = [
        shaped.advantages, shaped.weights, shaped.student_logprobs, shaped.teacher_logprobs, *shaped.entropies,
        scored.logprobs, scored.lse, scored.entropy, loss.loss.detach(), leaf.grad,
    ]  # fmt: skip
    return {"names": sorted(op.__all__), "version": op.__version__, "tensors": tensors}


ALONE = """
import pathlib, sys, torch

sys.modules["stepopsd"] = None  # an import of it fails
{load}
{results}
repository, out, *backends = map(str, sys.argv[1:])
op = {name}(pathlib.Path(repository))
torch.save({{backend: results(op, backend) for backend in backends}}, out)
assert not [name for name in sys.modules if name.startswith("stepopsd.")]
"""


@pytest.mark.parametrize("load", [load_folder, load_kernels])
def test_it_equals_the_package_bit_for_bit_where_that_is_missing(repository, tmp_path, load):
    if load is load_kernels and importlib.util.find_spec("kernels") is None:
        pytest.skip("Hugging Face's kernels is not installed; load_folder covers the layout")
    script = ALONE.format(load=inspect.getsource(load), results=inspect.getsource(results), name=load.__name__)
    command = [sys.executable, "-c", script, str(repository), str(tmp_path / "out.pt"), *BACKENDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "out.pt")
    for backend in BACKENDS:
        expected, got = results(stepopsd, backend), found[backend]
        assert (got["names"], got["version"]) == (expected["names"], expected["version"])
        assert len(got["tensors"]) == len(expected["tensors"])
        for ours, theirs in zip(expected["tensors"], got["tensors"], strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


class OpsSeen(TorchDispatchMode):
    """Namespaces of the ops that are called."""

    def __init__(self):
        super().__init__()
        self.namespaces = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.namespaces.add(function.namespace)
        return function(*args, **(kwargs or {}))


def test_variants_and_the_package_live_in_one_process_with_ops_of_their_own(repository):
    ops = [stepopsd, *(load_folder(repository, device) for device in DEVICES)]
    logits, ids = torch.randn(3, 16), torch.randint(16, (3,))
    seen, found = [], []
    for op in ops:
        with OpsSeen() as calls:
            found.append(op.token_logprobs(logits, ids, backend="torch").logprobs)
        seen.append(calls.namespaces - {"aten", "prim"})
    assert seen == [{op.__name__} for op in ops]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_without_compiled_code_auto_takes_torch_and_the_native_backend_says_why_not(repository):
    op = load_folder(repository)
    logits, ids = torch.randn(3, 16), torch.randint(16, (3,))
    default = op.token_logprobs(logits, ids).logprobs
    assert torch.equal(default, op.token_logprobs(logits, ids, backend="torch").logprobs)
    with pytest.raises(ValueError, match=r"backend 'cpu' is not available .*native cannot be imported"):
        op.token_logprobs(logits, ids, backend="cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_only_python_torch_and_triton_are_imported(repository, device):
    files = list((repository / "build" / f"torch-{device}").rglob("*"))
    assert {path.suffix for path in files if path.is_file()} <= {".py", ".json", ".pyc"}
    for path in (path for path in files if path.suffix == ".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "torch", "triton"}, path


@pytest.mark.parametrize("device", DEVICES)
def test_metadata_names_the_device_and_the_digest_of_every_file(repository, device):
    folder = repository / "build" / f"torch-{device}"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["id"].isidentifier()
    assert metadata["id"].startswith(f"_stepopsd_{device}_")
    assert (metadata["backend"], metadata["python-depends"]) == ({"type": device}, [])
    hashes = {
        path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in folder.rglob("*.py")
    }
    assert metadata["digest"] == {"algorithm": "sha256", "files": hashes}


def test_the_same_sources_give_the_same_files(repository, tmp_path):
    write_hub_kernel(tmp_path / "again")
    written = [path for path in (tmp_path / "again").rglob("*") if path.is_file()]
    for path in written:
        assert path.read_bytes() == (repository / path.relative_to(tmp_path / "again")).read_bytes()


def test_the_card_s_example_runs(repository):
    pytest.importorskip("kernels", reason="Hugging Face's kernels is not installed, and the card shows its loader")
    card = (repository / "README.md").read_text()
    example = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=repository, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("source", "moved"),
    [
        ("from stepopsd.ops import checks", "from . import checks"),
        ("from stepopsd.ops.steps import EPS", "from .steps import EPS"),
        ("if x:\n    from stepopsd.ops.triton.shape import y", "if x:\n    from .triton.shape import y"),
        ('op = f("stepopsd::score_rows")', 'op = f("_id::score_rows")'),
        ('"""As ``stepopsd.grpo_loss``."""', '"""As ``stepopsd.grpo_loss``."""'),
    ],
)
def test_relocate_rewrites_imports_and_op_names_alone(source, moved):
    assert relocate(source, "losses.py", "_id") == moved


def test_relocate_counts_folders():
    source = "from stepopsd.ops.triton.table import Launch"
    assert relocate(source, "triton/score.py", "_id") == "from ..triton.table import Launch"


@pytest.mark.parametrize(
    "source",
    [
        "import stepopsd",
        "from stepopsd import ops",
        "from stepopsd.credit import base",
        "import torch, stepopsd.ops.checks as checks",
        "load('stepopsd._native')",
        "op = 'stepopsd::score_rows'",
    ],
)
def test_relocate_refuses_what_would_still_need_the_package(source):
    with pytest.raises(ValueError, match=r"losses\.py, line 2: 'stepopsd.*' would still need the package"):
        relocate(f"x = 1\n{source}", "losses.py", "_id")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="out must be a new or empty folder"):
        write_hub_kernel(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
