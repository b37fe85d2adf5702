#!/usr/bin/env bash
# `make gpu`: test the Triton kernels on this machine's NVIDIA GPU, then measure them.
#   PYTHON    the interpreter to use (its torch must see the GPU); otherwise .venv or python3, whichever does
#   RESULTS   folder for the report (default benchmarks/results)
# Needs no network and no installation: the package runs from this folder. Exits with 2 where there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
unset TRITON_INTERPRET
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

sees_gpu() { "$1" -c 'import sys, torch; sys.exit(not (torch.cuda.is_available() and torch.version.cuda))' 2>/dev/null; }

python=
for candidate in "${PYTHON:-}" .venv/bin/python python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null && sees_gpu "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "make gpu: no Python here has a torch that sees an NVIDIA GPU (tried PYTHON, .venv, python3)." >&2
    echo "Nothing was tested, measured or written. Without a GPU the kernels are tested by 'make test'." >&2
    exit 2
fi

"$python" -c 'import sys, torch, triton
print(f"{sys.executable}: torch {torch.__version__}, triton {triton.__version__}, {torch.cuda.get_device_name()}")'
"$python" -m pytest -q -p no:cacheprovider tests/ops/test_triton_gpu.py tests/ops/test_triton_pair.py \
    tests/ops/test_triton_aot.py
"$python" -m pytest -q -p no:cacheprovider tests/ops/test_backends_agree.py -k triton
"$python" -m benchmarks.report_gpu --results "${RESULTS:-benchmarks/results}"
