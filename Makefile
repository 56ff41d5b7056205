# Two commands on a fresh machine: `make train` and `make test`. Everything they need is installed into .venv.

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
DATA := data/prepared_financial_data.csv

.PHONY: help train test test-all test-torch check docs bench bench-check gpu tune clean

help:
	@echo "make train        build the data, train the quickstart on the CPU, write the results"
	@echo "make test         run the tests that verify an installation; takes minutes"
	@echo "make test-all     run all other tests: slow ones, those that compile, those with several processes"
	@echo "make test-torch TORCH=2.14.1   run make test with another torch, in a separate environment"
	@echo "make check        run ruff and mypy"
	@echo "make docs         build the documentation into .cache/site; a broken link is an error"
	@echo "make bench        run the benchmarks"
	@echo "make bench-check  compare times, memory and kernels with the committed results"
	@echo "make gpu          verify and measure the kernels on a CUDA GPU; ends within 8 minutes"
	@echo "make tune         find the fastest launch configurations on a CUDA GPU; starts nothing after 25 minutes"
	@echo "make clean        remove the environments and the built data (never the runs)"

# The stamp is newer than what it was installed from, so a second call installs nothing.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[data,plots,tensorboard,dev]'
	touch $@

$(DATA): | $(VENV)/installed
	$(BIN)/pgat-fast data build --out $@

train: $(VENV)/installed $(DATA)
	$(BIN)/pgat-fast train --config configs/quickstart.yaml

# `make test` and `make test-all` together run every test once. Each worker has one thread: the tests are small, and workers
# with several threads would wait for each other. There are as many workers as cores, although many tests wait, because
# some tests have time limits. Interpreted kernels run in separate processes, since they cannot be compiled. All tests share
# one compile cache (tests/conftest.py).
PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist worksteal
LONG := slow or compile or multiprocess
test test-all: export OMP_NUM_THREADS = 1

test: $(VENV)/installed
	$(PYTEST) -m 'not ($(LONG))'
	TRITON_INTERPRET=1 $(PYTEST) -m 'not ($(LONG))' tests/interpreter

# `make test-all MINUTES=60` skips the tests that have not begun by then, and counts them as skipped. Each command gets a
# percentage of these minutes.
share = $(if $(MINUTES),--begin-within $(shell expr $(MINUTES) \* $(1) / 100))

# The same numbers in another environment: on processors with narrower vectors, with more than one thread. Only files
# with such tests are collected, since importing all the others would take longer than a part of the tests.
PARITY_FILES = $(shell grep -rl --include='test_*.py' 'mark.parity' tests/pgat_fast tests/pgat_kernels)
define parity
	$(1) $(PYTEST) $(2) $(call share,7) -m 'parity and not compile' $(PARITY_FILES)
	$(1) TRITON_INTERPRET=1 $(PYTEST) $(2) $(call share,4) -m 'parity and not ($(LONG))' tests/interpreter
endef

test-all: $(VENV)/installed
	$(call parity,ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41)
	$(call parity,ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive)
	$(PYTEST) $(call share,50) -m '$(LONG)'
	TRITON_INTERPRET=1 $(PYTEST) $(call share,20) -m '$(LONG)' tests/interpreter

# The pinned versions of everything but torch and triton, which comes with torch. A build for CUDA takes 6 GB.
TORCH_VENV = .venv-torch-$(TORCH)

$(TORCH_VENV)/constraints.txt: constraints.txt
	mkdir -p $(@D)
	(grep -vE '^(torch|triton)==' constraints.txt; echo 'torch==$(TORCH)') > $@

ifdef TORCH
test-torch: $(TORCH_VENV)/constraints.txt
	$(MAKE) test VENV=$(TORCH_VENV) CONSTRAINTS=$<
else
test-torch:
	@echo "Which torch? make test-torch TORCH=2.14.1"; exit 2
endif

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[docs]'
	$(BIN)/mkdocs build --strict

bench: $(VENV)/installed
	$(BIN)/python -m pytest bench --benchmark-only

bench-check: $(VENV)/installed
	$(BIN)/pgat-fast bench check

# Run with the installed python, torch and triton, since constraints.txt has no CUDA build. `make gpu OUT=STEM` and
# `make tune OUT=FILE` write there instead of into the repository.
ON_GPU = PYTHONPATH=.:kernels$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) -m

gpu tune: has-torch

.PHONY: has-torch
has-torch:
	@$(PYTHON) -c 'import torch' || (echo "$(PYTHON) has no torch: activate an environment that has, or make gpu PYTHON=.../python"; exit 2)

gpu:
	$(ON_GPU) bench.gpu.measure $(if $(OUT),--out $(OUT),--save)

tune:
	$(ON_GPU) bench.gpu.tune $(if $(OUT),--out $(OUT))

clean:
	rm -rf $(VENV) .venv-torch-* $(DATA) $(DATA).note.json
