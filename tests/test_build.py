"""The build: what each value of STEPOPSD_BUILD and STEPOPSD_CUDA does, and a wheel without any compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("csrc", "stepopsd", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")

if not (ROOT / "setup.py").exists():
    pytest.skip("needs a source checkout", allow_module_level=True)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the sources, without what earlier builds left behind."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def run(command, folder, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("STEPOPSD_BUILD", "STEPOPSD_CUDA", "CXX", "CXXFLAGS")}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=300
    )


def configure(folder, **environment):
    """Runs the part of setup.py that decides what to build."""
    return run(["setup.py", "--name"], folder, **environment)


def wheel(folder, **environment):
    """The path of the wheel that pip builds there, offline."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-q", "-w", "wheels"]
    done = run(["-m", "pip", "wheel", ".", *options], folder, **environment)
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "wheels").glob("*.whl")
    return built


def compiled(path):
    return [name for name in zipfile.ZipFile(path).namelist() if name.endswith((".so", ".o", ".cpp", ".h"))]


def test_a_python_wheel_has_nothing_compiled_and_shapes_advantages(checkout, tmp_path):
    (checkout / "stepopsd" / "_native.abc.so").write_bytes(b"left by an earlier build")
    built = wheel(checkout, STEPOPSD_BUILD="python")
    assert built.name.endswith("-py3-none-any.whl")
    assert compiled(built) == []
    site = tmp_path / "site"
    zipfile.ZipFile(built).extractall(site)
    script = (
        # a development install would lend its own compiled module
        "import sys; sys.meta_path = [f for f in sys.meta_path if '__editable__' not in getattr(f, '__module__', '')]\n"
        "import torch, stepopsd; from stepopsd.ops import dispatch, native\n"
        "assert stepopsd.__file__.startswith('SITE')\n"
        "assert 'not built' in native.availability('cpu')\n"
        "x = torch.randn(1, 3, 7)\n"
        "stepopsd.shape_advantages(x, x + 1, torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3))\n"
        "print(dispatch.resolve('auto', 'cpu'))\n"
    ).replace("SITE", str(site))
    done = run(["-c", script], site, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["torch"]


def test_every_data_file_of_the_package_is_in_the_wheel(checkout):
    packed = set(zipfile.ZipFile(wheel(checkout, STEPOPSD_BUILD="python")).namelist())
    files = (p for p in (checkout / "stepopsd").rglob("*") if p.is_file() and p.suffix != ".pyc")
    assert {str(p.relative_to(checkout)) for p in files} <= packed


def test_the_source_archive_carries_the_kernels_and_nothing_compiled(checkout):
    (checkout / "stepopsd" / "_native.abc.so").write_bytes(b"left by an earlier build")
    assert run(["setup.py", "-q", "sdist"], checkout, STEPOPSD_BUILD="python").returncode == 0
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    kernels = {str(p.relative_to(checkout)) for p in (checkout / "csrc").rglob("*") if p.is_file()}
    assert kernels <= names
    assert not [name for name in names if name.endswith((".so", ".o"))]


def test_without_a_compiler_auto_goes_on_and_says_why(checkout):
    done = configure(checkout, CXX="no-such-compiler")
    assert done.returncode == 0
    assert "going on without the native module: no C++ compiler found" in done.stderr
    assert wheel(checkout, CXX="no-such-compiler").name.endswith("-py3-none-any.whl")


def test_without_a_compiler_native_is_an_error(checkout):
    done = configure(checkout, CXX="no-such-compiler", STEPOPSD_BUILD="native")
    assert done.returncode != 0
    assert "STEPOPSD_BUILD=native: no C++ compiler found (looked for no-such-compiler" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("STEPOPSD_BUILD", "fast", "STEPOPSD_BUILD must be one of auto, native, python; got 'fast'"),
        ("STEPOPSD_CUDA", "yes", "STEPOPSD_CUDA must be one of auto, 0, 1; got 'yes'"),
        ("STEPOPSD_CUDA", "1", "this version has no CUDA C++ kernels"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_allowed_values(checkout, variable, value, message):
    done = configure(checkout, **{variable: value})
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_source_that_does_not_compile_stops_native_but_not_auto(checkout):
    for source in (checkout / "csrc").rglob("*.cpp"):
        source.write_text("#error broken\n")
    build = ["setup.py", "-q", "build_ext", "--inplace"]
    assert run(build, checkout, STEPOPSD_BUILD="native").returncode != 0
    assert compiled(wheel(checkout, STEPOPSD_BUILD="auto")) == []
