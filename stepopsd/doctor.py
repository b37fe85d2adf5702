"""`stepopsd doctor`: what this installation can do, what is missing, why, and what to do about it."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import stepopsd

_TRAINING = {
    "transformers": "transformers",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "yaml": "pyyaml",
    "tyro": "tyro",
    "rich": "rich",
    "matplotlib": "matplotlib",
}
_ENGINE = {
    "textworld": "textworld",
    "alfworld": "alfworld",
    "fast_downward": "fast-downward-textworld",
    "jericho": "jericho",
    "hashids": "hashids",
    "mementos": "mementos",
    "networkx": "networkx",
    "more_itertools": "more-itertools",
    "tatsu": "TatSu",
    "termcolor": "termcolor",
    "prompt_toolkit": "prompt-toolkit",
}
#: Extra -> what it is for.
ENABLES = {
    "train": "stepopsd train, eval, sft, demo, report",
    "alfworld": "the ALFWorld text engine",
    "retrieval": "an index on disk, and the Search-R1 server and its client",
    "dense": "dense retrieval",
    "lora": "low-rank adapters, lora.rank",
    "triton": "GPU kernels in Triton",
    "vllm": "rollout.engine vllm and vllm_server",
    "tensorboard": "logging.trackers tensorboard",
    "wandb": "logging.trackers wandb",
    "trackio": "logging.trackers trackio",
    "trl": "stepopsd.integrations.trl",
    "docs": "the documentation site",
    "bench-peers": "other packages' kernels in stepopsd bench",
    "dev": "make test and make check",
}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Args:
        name: What was looked at.
        ok: Whether it is there and works.
        detail: Versions and places, or the reason why not.
        remedy: What to do about it; empty when there is nothing to do.
        required: Whether the op itself cannot run without it.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = False


def report() -> list[Check]:
    """Everything that decides what this installation can do; imports what it names, changes nothing."""
    checks: tuple[Callable[[], Check], ...] = (
        _torch,
        _op,
        _cuda_device,
        _triton,
        _native,
        _cuda_kernels,
        _compiler,
        _nvcc,
        _training,
        _engine,
        _bundled_games,
        _official_games,
    )
    return [*(check() for check in checks), *_extras()]


def main(argv: Sequence[str] = ()) -> int:
    """Print the report; 1 when the op itself, or the host that was asked about, cannot run, else 0."""
    parser = argparse.ArgumentParser(prog="stepopsd doctor", description=__doc__)
    parser.add_argument("host", nargs="?", choices=["verl"], help="look at the adapter to this trainer instead")
    parser.add_argument("--config-dir", action="store_true", help="with a host: print the folder of our configurations")
    chosen = parser.parse_args(list(argv))
    if chosen.host is None:
        checks = report()
    else:
        host = importlib.import_module(f"stepopsd.integrations.{chosen.host}.doctor")
        if chosen.config_dir:
            print(host.CONFIG_DIR)
            return 0
        checks = [Check(f.name, f.ok, f.detail, f.remedy, f.required) for f in host.findings()]
    print(f"stepopsd {stepopsd.__version__} · Python {platform.python_version()} · {platform.platform()}")
    _render(checks)
    return int(any(check.required and not check.ok for check in checks))


def _mark(check: Check) -> str:
    return "ok" if check.ok else "FAIL" if check.required else "missing"


def _render(checks: Iterable[Check]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print("\n".join(_plain_lines(checks)))
        return
    table = Table(show_header=False, box=None, padding=(0, 1))
    for check in checks:
        style = "green" if check.ok else "bold red" if check.required else "yellow"
        text = Text(check.detail)
        if check.remedy:
            text.append(f"\n→ {check.remedy}", style="cyan")
        table.add_row(Text(_mark(check), style=style), Text(check.name, style="bold"), text)
    Console().print(table)


def _plain_lines(checks: Iterable[Check]) -> list[str]:
    lines = []
    for check in checks:
        lines.append(f"{_mark(check):8}{check.name:18}{check.detail}")
        if check.remedy:
            lines.append(f"{'':26}-> {check.remedy}")
    return lines


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _absent(modules: dict[str, str]) -> list[str]:
    """The distributions whose import name is not found; nothing is imported."""
    return [package for module, package in modules.items() if importlib.util.find_spec(module) is None]


def _torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("torch", False, str(error), "pip install 'torch>=2.6'", required=True)
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return Check("torch", True, f"{torch.__version__} ({built_for}), {torch.get_num_threads()} threads", required=True)


def _op() -> Check:
    """Runs the op once on the CPU."""
    try:
        import torch

        from stepopsd.ops.dispatch import resolve
        from stepopsd.ops.shaping import shape_advantages

        logits = torch.zeros(1, 2, 5)
        shaped = shape_advantages(logits, logits, torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2))
        if not torch.equal(shaped.advantages, torch.ones(1, 2)):
            raise ArithmeticError(f"equal logits must leave the advantages alone, got {shaped.advantages.tolist()}")
    except Exception as error:  # whatever is wrong belongs into the report
        return Check("op", False, f"{type(error).__name__}: {error}", "see the lines below", required=True)
    backends = f"CPU tensors through {resolve('auto', 'cpu')}"
    if torch.cuda.is_available():
        backends += f", CUDA tensors through {resolve('auto', 'cuda')}"
    return Check("op", True, backends, required=True)


def _cuda_device() -> Check:
    try:
        import torch

        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            return Check("CUDA device", True, f"{torch.cuda.get_device_name()} (sm_{major}{minor})")
        built = torch.version.cuda is not None
    except ImportError:
        built = False
    reason = "torch sees none (driver or device missing)" if built else "torch is a build without CUDA"
    return Check("CUDA device", False, f"{reason}; everything runs on the CPU")


def _triton() -> Check:
    try:
        from stepopsd.ops.dispatch import unavailable

        reason = unavailable("triton", "cuda")
    except ImportError as error:
        reason = str(error)
    if reason is None:
        return Check("triton", True, f"{_version('triton')}, kernels for CUDA tensors")
    if importlib.util.find_spec("triton") is None:
        return Check("triton", False, reason, "pip install 'stepopsd[triton]' (CUDA builds of torch bring it)")
    return Check("triton", False, f"{_version('triton')}: {reason}")


def _native() -> Check:
    rebuild = "STEPOPSD_BUILD=native pip install --force-reinstall --no-deps <where it came from>"
    try:
        module = importlib.import_module("stepopsd._native")
        from stepopsd.ops import native

        detail = f"{native.isa()} in use, of {', '.join(native.isas())}"
    except ModuleNotFoundError:
        return Check("native module", False, "not built: CPU tensors go through torch, many times slower", rebuild)
    except (ImportError, ValueError) as error:
        return Check("native module", False, str(error), rebuild if isinstance(error, ImportError) else "")
    newer = _newer_sources(Path(str(module.__file__)))
    if newer:
        return Check("native module", True, f"{detail}; older than {', '.join(newer)}", "repeat the installation")
    return Check("native module", True, detail)


def _newer_sources(built: Path) -> list[str]:
    """In a source checkout: the C++ and CUDA files that changed after the module was built."""
    sources = built.parent.parent / "csrc"
    files = [f for kind in ("*.cpp", "*.h", "*.cu", "*.cuh") for f in sources.rglob(kind)]
    return sorted(f.name for f in files if f.stat().st_mtime > built.stat().st_mtime)


def _cuda_kernels() -> Check:
    try:
        from stepopsd.ops import cuda, dispatch

        reason = dispatch.unavailable("cuda", "cuda")
        compiled = ", ".join(cuda.architectures())
    except ImportError as error:
        return Check("CUDA C++ kernels", False, str(error))
    except RuntimeError as error:
        reason, _, remedy = str(error).partition("; ")
        return Check("CUDA C++ kernels", False, reason, remedy)
    if reason is not None:
        return Check("CUDA C++ kernels", False, f"compiled for {compiled}, cannot run: {reason}")
    return Check("CUDA C++ kernels", True, f"compiled for {compiled}; used where backend='cuda' names them")


def _output(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return (run.stdout or run.stderr).strip()


def _compiler() -> Check:
    wanted = os.environ.get("CXX", "").split()[:1] or ["g++", "clang++", "c++"]
    found = next(filter(None, map(shutil.which, wanted)), None)
    if found is None:
        remedy = "install g++ or clang++, or name one in CXX; needed only to build the native module"
        return Check("C++ compiler", False, f"none of {', '.join(wanted)} found", remedy)
    return Check("C++ compiler", True, f"{found}: {next(iter(_output([found, '--version']).splitlines()), '')}")


def _nvcc() -> Check:
    home = os.environ.get("CUDA_HOME")
    places = [str(Path(home, "bin", "nvcc"))] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next(filter(None, map(shutil.which, places)), None)
    if found is None:
        remedy = "install the CUDA toolkit or point CUDA_HOME at it; needed only to build the CUDA C++ kernels"
        return Check("nvcc", False, f"not found ({', '.join(places)})", remedy)
    release = next((line for line in _output([found, "--version"]).splitlines() if "release" in line), "")
    return Check("nvcc", True, f"{found}: {release}")


def _training() -> Check:
    absent = _absent(_TRAINING)
    if absent:
        return Check("training", False, f"not installed: {', '.join(absent)}", "pip install 'stepopsd[train]'")
    versions = (f"{name} {_version(name)}" for name in ("transformers", "accelerate", "tyro"))
    return Check("training", True, ", ".join(versions))


def _engine() -> Check:
    absent = _absent(_ENGINE)
    if absent:
        remedy = "pip install --no-deps -r constraints-alfworld.txt (the small set that the text engine needs)"
        return Check("text engine", False, f"not installed: {', '.join(absent)}", remedy)
    return Check("text engine", True, f"textworld {_version('textworld')}, alfworld {_version('alfworld')}")


def _bundled_games() -> Check:
    try:
        from stepopsd.envs.games.bundle import bundled_games

        splits = [split for split, _ in bundled_games()]
    except (ImportError, OSError, ValueError) as error:
        return Check("bundled games", False, str(error), "reinstall: the package's own data is incomplete")
    return Check("bundled games", bool(splits), _counts(Counter(splits)))


def _official_games() -> Check:
    remedy = "stepopsd games download --dest DIR, then point ALFWORLD_DATA at it; the bundled games need nothing"
    root = os.environ.get("ALFWORLD_DATA")
    if not root:
        return Check("official games", False, "ALFWORLD_DATA is not set", remedy)
    try:
        from stepopsd.envs.alfworld import list_tasks
    except ImportError as error:
        return Check("official games", False, str(error))
    found, reason = {}, ""
    for split in ("train", "seen", "unseen"):
        try:
            found[split] = len(list_tasks(root, split))
        except (FileNotFoundError, ValueError) as error:
            reason = str(error)
    if not found:
        return Check("official games", False, f"ALFWORLD_DATA={root}: {reason}", remedy)
    return Check("official games", True, f"{_counts(found)}, below {root}")


def _extras() -> list[Check]:
    """One line per extra of the installed package: what it brings, and which of its packages are not there."""
    try:
        required = importlib.metadata.requires("stepopsd") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("extras", False, "the package runs from a folder and is not installed", "pip install -e .")]
    extras: dict[str, list[str]] = {}
    for requirement in required:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name and extra:
            extras.setdefault(extra[1], []).append(name[0])
    return [_extra(name, packages) for name, packages in extras.items()]


def _extra(name: str, packages: Sequence[str]) -> Check:
    absent = [package for package in packages if _version(package) == "(not installed)"]
    brings = f"{ENABLES[name]}; " if name in ENABLES else ""
    if not absent:
        return Check(f"extra {name}", True, f"{brings}all of {', '.join(packages)}")
    missing = f"{brings}not installed: {', '.join(absent)}"
    return Check(f"extra {name}", False, missing, f"pip install 'stepopsd[{name}]'")


def _counts(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in splits.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
