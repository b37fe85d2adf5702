"""The core needs torch and nothing else: whatever torch itself does not bring may be missing."""

from __future__ import annotations

import subprocess
import sys

BLOCKER = """
import sys

import torch

# What torch brings, and imports when it is used.
own = {"filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy", "typing_extensions", "numpy"}
before = {name.partition(".")[0] for name in sys.modules} | own


class Only:
    def __init__(self, inner):
        self.inner = inner

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        allowed = top in {"stepopsd", *sys.stdlib_module_names, *before} or top.startswith("_sysconfigdata")
        return self.inner.find_spec(name, path, target) if allowed else None


sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
"""

USE = """
import stepopsd

logits, ids = torch.randn(2, 4, 16), torch.randint(16, (2, 4))
shaped = stepopsd.shape_advantages(logits, logits + torch.randn_like(logits), ids, torch.ones(2, 4))
assert bool((shaped.weights != 1).any())
scores = stepopsd.token_logprobs(logits.clone().requires_grad_(), ids)
scores.logprobs.sum().backward()

from stepopsd.integrations.credit import HostCredit

out = HostCredit("stepopsd", {"lambda_decay_updates": 0, "step_norm": "none"}).advantages(
    response_mask=[[1, 1], [1]], advantages=[1.0, -1.0],
    student_logprobs=[[-1.0, -1.0], [-1.0]], teacher_logprobs=[[0.0, -2.0], [0.0]],
)
assert len(out.advantages) == 2
"""


def test_the_core_imports_and_works_with_torch_alone():
    done = subprocess.run([sys.executable, "-c", BLOCKER + USE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_else_can_be_imported_there():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER + "import pytest"], capture_output=True, text=True, timeout=300
    )
    assert "No module named 'pytest'" in done.stderr
