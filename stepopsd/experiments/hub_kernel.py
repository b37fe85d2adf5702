"""The op as a folder for Hugging Face's ``kernels``: pure Python (Triton and PyTorch), made from ``stepopsd/ops``.

    python -m stepopsd.experiments.hub_kernel --out build/hub

Without compiled code one source serves every torch version, so there is one "noarch" variant per kind of device. A
process may hold several versions of a kernel, and this package beside them: in the copies every import is relative and
the custom ops stand in a namespace of the copy's own, which ends in a hash of the sources.

Source: kernel requirements of huggingface/kernels 0.17.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import tyro

import stepopsd
from stepopsd import ops

NAME = "stepopsd"
DEVICES = ("cpu", "cuda", "rocm")  # what our backends compute
COMPILED = ("cuda.py", "native.py", "native_tokens.py")  # launchers of the extension module, which stays behind
LICENSE = "apache-2.0"
SUMMARY = "Fused credit assignment for agent RL: StepOPSD advantages, log-probs and policy losses with gradients."

_IMPORT = re.compile(r"^(\s*from )stepopsd\.ops(?:\.([\w.]+))?(?= import )", re.MULTILINE)
_NAMESPACE = re.compile(r'"stepopsd::(?=\w)')
_OURS = re.compile(r"stepopsd((\.\w*)+|::.*)?")  # in full: a sentence that mentions us is no reference


def write_hub_kernel(out: Path) -> list[Path]:
    """Write a kernel repository that ``kernels`` loads, from the sources of this very package.

    Args:
        out: A folder that is new or empty; gets ``README.md`` and ``build/torch-{cpu,cuda,rocm}``.

    Returns:
        The folders of the variants. Each is a package with the names of ``stepopsd`` and a ``metadata.json``.

    Raises:
        FileExistsError: ``out`` is a file, or holds something.
        ValueError: A source refers to ``stepopsd`` in a way that would not survive the move.

    Example:
        >>> write_hub_kernel(Path("build/hub"))
        >>> op = kernels.get_local_kernel(Path("build/hub"))
        >>> op.shape_advantages(student_logits, teacher_logits, token_ids, advantages)
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out must be a new or empty folder, got {out}")
    sources = _sources()
    digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:7]
    variants = {device: _variant(sources, f"_{NAME}_{device}_{digest}", device) for device in DEVICES}
    for device, files in variants.items():
        _write(out / "build" / f"torch-{device}", files)
    _write(out, {"README.md": _card()})
    return [out / "build" / f"torch-{device}" for device in DEVICES]


def relocate(source: str, path: str, namespace: str) -> str:
    """The text of a module of ``stepopsd.ops`` that works under any name, its custom ops in ``namespace``.

    Args:
        source: The module's text.
        path: Where it lies below ``stepopsd/ops``, as in ``triton/score.py``.
        namespace: Of ``torch.ops``.

    Raises:
        ValueError: The text still names ``stepopsd``, outside docstrings and comments.
    """
    dots = "." * (path.count("/") + 1)
    moved = _IMPORT.sub(lambda found: f"{found[1]}{dots}{found[2] or ''}", source)
    moved = _NAMESPACE.sub(f'"{namespace}::', moved)
    for node in ast.walk(ast.parse(moved)):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Constant):
            left = [name for name in _names(node) if _OURS.fullmatch(name)]
            if left:
                raise ValueError(f"{path}, line {node.lineno}: {left[0]!r} would still need the package")
    return moved


def _names(node: ast.Import | ast.ImportFrom | ast.Constant) -> list[str]:
    """What the node may fetch from outside its package: modules, and strings, which may name modules or ops."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [] if node.level else [node.module or ""]
    return [node.value] if isinstance(node.value, str) else []


def _sources() -> dict[str, str]:
    """Path below ``stepopsd/ops`` -> text, and the package's own ``__init__.py``."""
    root = Path(ops.__path__[0])
    texts = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in sorted(root.rglob("*.py"))}
    kept = {path: text for path, text in texts.items() if path not in COMPILED}
    return kept | {"__init__.py": _exports()}


def _exports() -> str:
    """The text of an ``__init__.py`` with the public names of the package."""
    homes: dict[str, list[str]] = {}
    for name in sorted(set(stepopsd.__all__) - {"__version__"}):
        found = getattr(stepopsd, name)
        home = ops.__name__ if isinstance(found, ModuleType) else found.__module__
        homes.setdefault(home, []).append(name)
    lines = [f"from {home} import {', '.join(homes[home])}" for home in sorted(homes)]
    names = [f'    "{name}",' for name in stepopsd.__all__]
    version = f'__version__ = "{stepopsd.__version__}"'
    return "\n".join([f'"""{SUMMARY}"""', "", *lines, "", version, "__all__ = [", *names, "]", ""])


def _variant(sources: dict[str, str], identity: str, device: str) -> dict[str, str]:
    files = {path: relocate(text, path, identity) for path, text in sources.items()}
    hashes = {path: hashlib.sha256(text.encode()).digest() for path, text in files.items()}
    metadata = {
        "name": NAME,
        "id": identity,
        "version": int(stepopsd.__version__.partition(".")[0]),  # 0 until the interface is settled
        "license": LICENSE,
        "python-depends": [],  # Triton comes with torch
        "backend": {"type": device},
        "digest": {
            "algorithm": "sha256",
            "files": {path: base64.b64encode(hashes[path]).decode() for path in sorted(hashes)},
        },
    }
    return files | {"metadata.json": json.dumps(metadata, indent=2) + "\n"}


def _write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode())  # the digest is of these bytes, on any system


def _card() -> str:
    return f"""---
library_name: kernels
license: {LICENSE}
tags: [kernels, triton, reinforcement-learning]
---
# {NAME} {stepopsd.__version__}

{SUMMARY} Triton on CUDA and ROCm tensors, PyTorch on all others.

```python
import torch
from kernels import get_local_kernel  # or get_kernel, with the name and version that it was published under
from pathlib import Path

op = get_local_kernel(Path("."))
logits, ids = torch.randn(2, 8, 1000), torch.randint(1000, (2, 8))
shaped = op.shape_advantages(logits, logits + torch.randn_like(logits), ids, torch.ones(2, 8))
scored = op.token_logprobs(logits, ids, entropy=True)
```

It offers {", ".join(f"`{name}`" for name in stepopsd.__all__ if name != "__version__")}. The docstrings state shapes,
dtypes, errors and sources. Written by `python -m stepopsd.experiments.hub_kernel`; do not edit the copies.
"""


if __name__ == "__main__":
    try:
        written = tyro.cli(write_hub_kernel, prog="python -m stepopsd.experiments.hub_kernel")
    except (ValueError, OSError) as error:
        sys.exit(f"hub_kernel: {error}")
    print("\n".join(map(str, written)))
