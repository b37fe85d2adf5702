#!/usr/bin/env bash
# `make gpu`: build, test, sanitize and measure the kernels on this machine's NVIDIA GPU.
#   PYTHON    the interpreter to use (its torch must see the GPU); otherwise .venv or python3, whichever does
#   STAGES    which of: build test sanitize sweep throughput (default all, in this order)
#   BUDGET    seconds after which the sweep begins no further case (default 420)
#   RESULTS   folder for the reports (default benchmarks/results)
# Needs no network and installs nothing: the package runs from this folder. A failing stage does not stop the next ones.
# Exits with 0 when every stage passed or said why it had nothing to do, 1 when one failed, 2 where there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
unset TRITON_INTERPRET
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

sees_gpu() { "$1" -c 'import sys, torch; sys.exit(not (torch.cuda.is_available() and torch.version.cuda))' 2>/dev/null; }
has() { "$python" -c "import $1" 2>/dev/null; }

python=
for candidate in "${PYTHON:-}" .venv/bin/python python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null && sees_gpu "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "make gpu: no Python here has a torch that sees an NVIDIA GPU (tried PYTHON, .venv, python3)." >&2
    echo "Nothing was built, tested, measured or written. Without a GPU the kernels are tested by 'make test'." >&2
    exit 2
fi

# The native module and its CUDA kernels, next to the sources.
build() {
    local nvcc=${NVCC:-$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")}
    if ! command -v "$nvcc" >/dev/null; then
        skip "no nvcc (looked in PATH and ${CUDA_HOME:-/usr/local/cuda}): the cuda backend is not built"
        return
    fi
    STEPOPSD_BUILD=native STEPOPSD_CUDA=1 "$python" csrc/build_native.py &&
        "$python" -c 'from stepopsd.ops import dispatch
reason = dispatch.unavailable("cuda", "cuda")
raise SystemExit(f"built, but the cuda backend is not available: {reason}" if reason else 0)'
}

# The kernels' tests and every file with a test that needs a GPU. pytest and hypothesis may be missing on a bare box.
test_kernels() {
    if ! has pytest; then
        skip "pytest is not installed in $python; the sweep still checks every kernel against float64"
        return
    fi
    local files chosen=() file
    files=$({ ls tests/ops/test_triton*.py tests/ops/test_cuda*.py tests/ops/test_backends_agree.py
              grep -rlE 'mark\.gpu' tests --include='test_*.py'; } 2>/dev/null | sort -u)
    for file in $files; do
        if has hypothesis || ! grep -qE '^(import|from) hypothesis|strategies' "$file"; then
            chosen+=("$file")
        else
            echo "left out, as hypothesis is not installed in $python: $file"
        fi
    done
    "$python" -m pytest -q -p no:cacheprovider "${chosen[@]}"
}

sanitize() {
    local tool=${SANITIZER:-compute-sanitizer}
    command -v "$tool" >/dev/null || tool=$(ls -d /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
    if [ -z "$tool" ]; then skip "compute-sanitizer is not installed"; return; fi
    if [ ! -f tests/ops/sanitize.py ]; then skip "tests/ops/sanitize.py is not there"; return; fi
    local status=0
    for check in memcheck racecheck synccheck; do
        echo "-- $check"
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 300 "$tool" --tool "$check" --error-exitcode 9 \
            "$python" -m tests.ops.sanitize || status=1
    done
    return "$status"
}

sweep() {
    "$python" -m stepopsd.experiments.bench.sweep --device cuda --budget "${BUDGET:-420}" \
        --results "${RESULTS:-benchmarks/results}"
}

# Where the time of an update goes, in the shapes of real models.
throughput() {
    if ! has transformers || ! has accelerate; then
        skip "transformers and accelerate are not installed in $python"
        return
    fi
    "$python" -m benchmarks.throughput --device cuda --results "${RESULTS:-benchmarks/results}"
}

skipped=
skip() { echo "$1"; skipped=$1; }

summary=() failed=0
run_stage() {
    echo
    echo "== $1"
    local begin=$SECONDS
    skipped=
    if "$2"; then
        if [ -n "$skipped" ]; then summary+=("$1: not run: $skipped"); else summary+=("$1: passed in $((SECONDS - begin)) s"); fi
    else
        summary+=("$1: FAILED after $((SECONDS - begin)) s")
        failed=1
    fi
}

"$python" - <<'END'
import platform, sys, torch
try:
    import triton
    version = triton.__version__
except ImportError:
    version = "not installed"
print(f"{sys.executable}: Python {platform.python_version()}, torch {torch.__version__}, triton {version}, "
      f"{torch.cuda.get_device_name()}")
END
for stage in ${STAGES:-build test sanitize sweep throughput}; do
    case $stage in
        build | sanitize | sweep | throughput) run_stage "$stage" "$stage" ;;
        test) run_stage test test_kernels ;;
        *)
            echo "STAGES must name build, test, sanitize, sweep or throughput, got '$stage'" >&2
            failed=1
            ;;
    esac
done
echo
printf '%s\n' "== summary" "${summary[@]}"
exit "$failed"
