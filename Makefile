# Every target works alone on a fresh machine with Python >= 3.10, a C++20 compiler and make: it creates the virtual
# environment, builds the library and then does its work. Stamp files keep finished steps from being repeated.
#
#   make demo [QUICK=1]     make test [PYTEST_ARGS='-k entropy']     make bench [OP=linear_cross_entropy]
#
# PYTHON   the interpreter that the environment is made from        VENV    where the environment lies
# pip reads its own variables: with PIP_EXTRA_INDEX_URL set to PyTorch's CPU index the CPU build of torch is taken,
# which is a tenth of the size of the default one; tokcore needs nothing of a GPU build.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
OP ?= linear_cross_entropy
RESULTS ?= $(BUILD)/bench
PYTEST_ARGS ?=
BENCH_ARGS ?=
DEMO_ARGS ?=
GPU_CHECK_OUT ?= $(BUILD)/gpu-check
GPU_CHECK_ARGS ?=

BIN := $(VENV)/bin
STAMP_DEPS := $(VENV)/.stamp-deps
STAMP_EDITABLE := $(VENV)/.stamp-editable
CXX_SOURCES = $(shell find csrc include bench/cpp tests -type f -regex '.*\.\(h\|hpp\|cc\|cpp\|cu\|cuh\)' 2>/dev/null)

.PHONY: help env build everything demo test bench benchcpp lint format wheel docs cuda sass gpu-check clean distclean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

# ---- environment ----------------------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"tokcore needs Python >= 3.10, this is {sys.version}")'
	$(PYTHON) -m venv $(VENV)

$(STAMP_DEPS): requirements-dev.txt requirements-peers.txt requirements-cuda.txt | $(BIN)/python
	@echo "Installing requirements-dev.txt into $(VENV) (once; torch alone is some hundred megabytes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-peers.txt -r requirements-cuda.txt
	@touch $@

# Metadata and the `tokcore` command only: the package itself is imported from python/, where `build` puts the library.
# The build backend's import hook is taken out again: it would win over PYTHONPATH, the plain path beside it does not.
$(STAMP_EDITABLE): pyproject.toml $(STAMP_DEPS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	    -Cwheel.cmake=false -Ceditable.mode=inplace -e .
	@sed -i '/^import /d' $(VENV)/lib/python3.*/site-packages/_editable_skbc_tokcore.pth
	@touch $@

env: $(STAMP_EDITABLE) ## the virtual environment with everything in it

# ---- library --------------------------------------------------------------------------------------------------------

# Where nvcc 13 is found, the whole build holds the CUDA library; without it CMake says what is missing and goes on.
$(BUILD)/build.ninja: CMakeLists.txt $(STAMP_DEPS)
	$(BIN)/cmake -S . -B $(BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DCMAKE_BUILD_TYPE=Release \
	    -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DTOKCORE_TESTING=ON -DCMAKE_INSTALL_MESSAGE=LAZY
	@touch $@

build: $(BUILD)/build.ninja $(STAMP_EDITABLE) ## the CPU library, placed into python/tokcore
	$(BIN)/cmake --build $(BUILD) --target tokcore_cpu
	@$(BIN)/cmake --install $(BUILD) --prefix python --component tokcore_cpu

cuda: $(BUILD)/build.ninja $(STAMP_EDITABLE) ## the CUDA library, placed beside it: needs nvcc 13, no GPU
	$(BIN)/cmake --build $(BUILD) --target tokcore_cuda
	@$(BIN)/cmake --install $(BUILD) --prefix python --component tokcore_cuda

everything: $(BUILD)/build.ninja $(STAMP_EDITABLE)
	$(BIN)/cmake --build $(BUILD)
	@$(BIN)/cmake --install $(BUILD) --prefix python

# ---- work -----------------------------------------------------------------------------------------------------------

demo: build ## four acts: a language model's loss, sparse attention, KV caches, token trees (QUICK=1: ninety seconds)
	$(BIN)/tokcore demo $(if $(QUICK),--quick) $(DEMO_ARGS)

test: everything ## the whole suite; with nvcc every CUDA target is compiled too
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

bench: build ## time one op beside its peers: OP=..., BENCH_ARGS=..., results under RESULTS=build/bench
	@mkdir -p $(RESULTS)
	$(BIN)/tokcore bench --op $(OP) --json $(RESULTS)/$(OP).json --plot $(RESULTS)/$(OP).png $(BENCH_ARGS)

benchcpp: build ## the kernels alone, by Google Benchmark, if the machine has it
	$(BIN)/cmake -S . -B $(BUILD) -DTOKCORE_BENCH=ON
	$(BIN)/cmake --build $(BUILD)
	@find $(BUILD)/bench/cpp -maxdepth 1 -type f -executable -exec {} \;

lint: $(STAMP_EDITABLE) ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(if $(CXX_SOURCES),$(BIN)/clang-format --dry-run --Werror --style=file $(CXX_SOURCES))

format: $(STAMP_DEPS) ## rewrite the sources the way lint wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	@$(if $(CXX_SOURCES),$(BIN)/clang-format -i --style=file $(CXX_SOURCES))

wheel: $(STAMP_DEPS) ## dist/tokcore-*-py3-none-linux_x86_64.whl
	@rm -f dist/tokcore-*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .
	@ls -l dist/tokcore-*.whl
	@$(BIN)/python -m zipfile -l dist/tokcore-*.whl | grep -o 'tokcore/lib[a-z_]*\.so'
	@if [ -s build/wheel/cuda_missing.txt ]; then echo "without the CUDA library: $$(cat build/wheel/cuda_missing.txt)"; fi

docs: build ## docs/support.md, generated from the case tables
	$(BIN)/python -m tokcore.cli.support docs/support.md

sass: cuda ## docs/cuda-kernels.md: registers, shared memory and instructions of every kernel; fails on local memory
	$(BIN)/python -m tokcore.testing.sass --library python/tokcore/libtokcore_cuda.so --write docs/cuda-kernels.md

gpu-check: ## on a machine with a GPU: verify, check and time everything there, results under GPU_CHECK_OUT=build/gpu-check
	$(PYTHON) scripts/gpu_check.py --out $(GPU_CHECK_OUT) $(GPU_CHECK_ARGS)

clean: ## remove what was built; the environment stays
	rm -rf $(BUILD) dist python/tokcore/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## remove the environment too
	rm -rf $(VENV)
