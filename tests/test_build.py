"""The build: what each value of STEPOPSD_BUILD and STEPOPSD_CUDA does, with and without compilers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pybind11
import pytest

NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
ROOT = Path(__file__).parents[1]
VARIABLES = ("STEPOPSD_BUILD", "STEPOPSD_CUDA", "STEPOPSD_CUDA_ARCHS", "CUDA_HOME", "CXX", "CXXFLAGS")
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
    kept = {k: v for k, v in os.environ.items() if k not in VARIABLES}
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
    suffixes = (".so", ".o", ".cpp", ".h", ".cu", ".cuh")
    return [name for name in zipfile.ZipFile(path).namelist() if name.endswith(suffixes)]


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
    sources = [p for p in (checkout / "csrc").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    kernels = {str(p.relative_to(checkout)) for p in sources}
    assert {Path(name).suffix for name in kernels} >= {".cpp", ".h", ".cu", ".cuh", ".py"}
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
    assert run(build, checkout, STEPOPSD_BUILD="native", STEPOPSD_CUDA="0").returncode != 0
    assert compiled(wheel(checkout, STEPOPSD_BUILD="auto", STEPOPSD_CUDA="0")) == []


@pytest.fixture
def small(checkout):
    """A checkout whose module is one function and one CUDA kernel: it compiles in a moment."""
    shutil.rmtree(checkout / "csrc" / "cpu")
    shutil.rmtree(checkout / "csrc" / "cuda", ignore_errors=True)
    (checkout / "csrc" / "cuda").mkdir()
    (checkout / "csrc" / "module.cpp").write_text(
        "#include <Python.h>\n"
        "#ifdef STEPOPSD_WITH_CUDA\nint last_error();\n#else\nint last_error() { return -1; }\n#endif\n"
        "static PyObject* call(PyObject*, PyObject*) { return PyLong_FromLong(last_error()); }\n"
        'static PyMethodDef methods[] = {{"last_error", call, METH_NOARGS, nullptr}, {}};\n'
        "static PyModuleDef module = {PyModuleDef_HEAD_INIT, \"_native\", nullptr, -1, methods, {}, {}, {}, {}};\n"
        "PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&module); }\n"
    )
    (checkout / "csrc" / "cuda" / "one.cu").write_text(
        "__global__ void one(float* x) { *x = 1; }\n"
        "int last_error() { one<<<1, 1>>>(nullptr); return cudaPeekAtLastError(); }\n"
    )
    return checkout


def fake_nvcc(folder, architectures, run="exit 1"):
    """A toolkit whose nvcc knows these architectures and does `run` when it is asked to compile."""
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "nvcc"
    script.write_text(
        f"#!/bin/sh\nif [ \"$1\" = --list-gpu-code ]; then echo '{architectures}'; exit; fi\n"
        f"if [ \"$1\" = --help ]; then exit; fi\n{run}\n"
    )
    script.chmod(0o755)
    return str(folder)


def in_place(folder, **environment):
    """Builds without setuptools; the last line of what it prints says what was built."""
    return run(["csrc/build_native.py"], folder, **environment)


def last_error(folder):
    """What the built module answers: -1 without CUDA kernels, else what the CUDA runtime says of a launch."""
    done = run(["-c", "import _native; print(_native.last_error())"], folder, PYTHONPATH=str(folder / "stepopsd"))
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_without_nvcc_auto_builds_the_cpu_kernels_and_says_why(small):
    done = in_place(small, CUDA_HOME="/no/such/toolkit")
    assert done.returncode == 0, done.stderr
    assert "without CUDA kernels (no nvcc in /no/such/toolkit" in done.stderr
    assert last_error(small) == -1


def test_cuda_1_without_nvcc_is_an_error(small):
    for done in (
        configure(small, CUDA_HOME="/no/such/toolkit", STEPOPSD_CUDA="1"),
        in_place(small, CUDA_HOME="/no/such/toolkit", STEPOPSD_CUDA="1"),
    ):
        assert done.returncode != 0
        assert "STEPOPSD_CUDA=1: no nvcc in /no/such/toolkit; CUDA_HOME names the toolkit's folder" in done.stderr


def test_cuda_1_in_a_python_wheel_is_an_error(checkout):
    done = configure(checkout, STEPOPSD_BUILD="python", STEPOPSD_CUDA="1")
    assert done.returncode != 0
    assert "STEPOPSD_CUDA=1: STEPOPSD_BUILD=python leaves the native module out" in done.stderr


def test_an_nvcc_that_fails_stops_cuda_1_but_not_auto(small, tmp_path):
    broken = fake_nvcc(tmp_path / "toolkit", "sm_80", "echo 'unsupported GNU version' >&2; exit 1")
    done = in_place(small, CUDA_HOME=broken)
    assert done.returncode == 0, done.stderr
    assert "unsupported GNU version" in done.stdout + done.stderr
    assert "without CUDA kernels (they did not compile, see above)" in done.stderr
    assert last_error(small) == -1
    done = in_place(small, CUDA_HOME=broken, STEPOPSD_CUDA="1")
    assert done.returncode != 0
    assert "STEPOPSD_CUDA=1: they did not compile" in done.stderr


def test_architectures_unknown_to_nvcc_are_dropped_aloud(small, tmp_path):
    recorder = fake_nvcc(tmp_path / "old", "sm_70\nsm_80\nsm_90", 'echo "arguments: $*"; exit 1')
    done = in_place(small, CUDA_HOME=recorder, STEPOPSD_CUDA="1")
    assert f"no machine code for sm_100: {recorder}/bin/nvcc does not know them" in done.stderr
    for flag in ("arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"):
        assert f"-gencode={flag} " in done.stdout
    assert "sm_70" not in done.stdout
    assert "100" not in done.stdout
    assert "fast_math" not in done.stdout
    assert "--compress-mode" not in done.stdout, "only where nvcc has it"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("50;60", "compiles for none of the architectures 50, 60"), ("sm_90", "must look like '80;90;100', got 'sm_90'")],
)
def test_architectures_that_cannot_be_had_are_an_error(small, tmp_path, wanted, message):
    toolkit = fake_nvcc(tmp_path / "toolkit", "sm_80")
    done = in_place(small, CUDA_HOME=toolkit, STEPOPSD_CUDA="1", STEPOPSD_CUDA_ARCHS=wanted)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_cuda_kernels_load_without_a_driver_and_are_not_compiled_twice(small):
    done = in_place(small, STEPOPSD_CUDA="1", STEPOPSD_CUDA_ARCHS="90")
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels for 90" in done.stderr
    assert last_error(small) >= 0
    (module,) = (small / "stepopsd").glob("_native*.so")
    assert b"libcudart.so" not in module.read_bytes(), "the runtime is part of the module"
    again = in_place(small, STEPOPSD_CUDA="1", STEPOPSD_CUDA_ARCHS="90")
    if "ninja" in done.stdout:
        assert "no work to do" in again.stdout


def test_headers_of_pybind11_come_from_torch_where_it_is_not_installed(small, tmp_path):
    site = tmp_path / "site"
    (site / "torch" / "include").mkdir(parents=True)
    (small / "csrc" / "module.cpp").write_text(
        "#include <pybind11/pybind11.h>\n"
        'PYBIND11_MODULE(_native, m) { m.def("last_error", [] { return -1; }); }\n'
    )
    (site / "torch" / "__init__.py").write_text("raise RuntimeError('torch must not be imported')")
    shutil.copytree(Path(pybind11.get_include()) / "pybind11", site / "torch" / "include" / "pybind11")
    command = ["-S", "csrc/build_native.py"]  # without site-packages
    done = run(command, small, PYTHONPATH=str(site), STEPOPSD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert last_error(small) == -1
    done = run(command, small, STEPOPSD_CUDA="0")
    assert done.returncode != 0
    assert "pybind11 is not installed" in done.stderr
