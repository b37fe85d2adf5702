# `make demo` and `make test` work from a fresh clone; everything is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.stepopsd-installed
NATIVE_SOURCES = $(wildcard csrc/*.py csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
NVCC = $(shell command -v nvcc)$(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc)

export TOKENIZERS_PARALLELISM = false
# Threads that wait must not spin: on two busy cores a spinning one holds up the one it waits for.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-slow check docs bench bench-sweep gpu clean install

install: $(STAMP)

# torch first and alone: a range asked for by another package would bring the newest build instead of the pinned one.
# The text engine goes in without its dependency list, which would drag in a vision stack.
$(STAMP): pyproject.toml setup.py constraints.txt constraints-alfworld.txt $(NATIVE_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt setuptools pybind11 ninja triton
	$(BIN)/pip install -q --no-deps -r constraints-alfworld.txt
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[train,retrieval,lora,trl,dev,docs]'
	touch $@

demo: $(STAMP)  ## GRPO against StepOPSD on the real ALFWorld engine; ends in runs/demo/report.html
	$(BIN)/stepopsd demo --out runs/demo $(if $(FROM_SCRATCH),--from-scratch)

# One process per core, and one thread in each: the tests' matrices are tiny, a second OpenMP thread only waits. What is installed here
# may not be skipped; the CUDA kernels' machine code is read where there is an nvcc.
test: $(STAMP)
	OMP_NUM_THREADS=1 STEPOPSD_REQUIRE_ENGINE=1 STEPOPSD_REQUIRE_BACKENDS=torch,cpu,triton \
	$(if $(NVCC),STEPOPSD_REQUIRE_NVCC=1) $(BIN)/pytest -q -m "not slow and not gpu" \
	-n logical --maxprocesses 8 --dist loadfile

test-slow: $(STAMP)  ## the learning test: three seeds of training on the real engine
	$(BIN)/pytest -q -m slow -s

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP)  ## the site -> build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/pytest benchmarks -q --benchmark-only --benchmark-columns=median,iqr,rounds

bench-sweep: $(STAMP)  ## many shapes on this machine's CPU, about ten minutes -> benchmarks/results
	$(BIN)/python -m stepopsd.experiments.bench.sweep --device cpu --threads 1 --budget 600

gpu:  ## on a machine with a GPU, with that machine's own Python
	bash benchmarks/gpu.sh

clean:
	rm -rf build dist runs *.egg-info stepopsd/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
