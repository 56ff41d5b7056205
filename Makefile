# Two commands on a fresh machine: `make train` and `make test`. Everything they need is installed into .venv.

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
DATA := data/prepared_financial_data.csv

.PHONY: help train test test-all test-torch check docs bench bench-check gpu tune clean

help:
	@echo "make train   build the data, train the quickstart on the CPU, print and write the results"
	@echo "make test    run the tests that show that an installation is right, in minutes"
	@echo "make test-all  run all the others: the slow ones, those that compile, those of several processes"
	@echo "make test-torch TORCH=2.14.1  run what make test runs, with that torch, in an environment of its own"
	@echo "make check   run ruff and mypy"
	@echo "make docs    build the documentation into .cache/site; a broken link is an error"
	@echo "make bench   run the benchmarks"
	@echo "make bench-check  what has become worse than the committed results: times, memory, kernels"
	@echo "make gpu     check and measure the kernels on a CUDA GPU; begins nothing after 7.5 minutes"
	@echo "make tune    how kernels are best compiled, and where they pay, on a CUDA GPU; begins nothing after 25 minutes"
	@echo "make clean   remove the environments and the built data (never the runs)"

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

# `make test` and `make test-all` together run every test once. One thread a worker: the tests are small, and two workers
# with all threads each would wait for each other. Not more workers than cores, though many tests wait: some have time
# limits. Kernels are interpreted in processes of their own: an interpreted kernel cannot be compiled, and torch.compile
# needs both. What one test has compiled, the others find in the cache.
PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist worksteal
LONG := slow or compile or multiprocess
test test-all: export TORCHINDUCTOR_CACHE_DIR ?= $(CURDIR)/.cache/inductor
test test-all: export OMP_NUM_THREADS = 1

test: $(VENV)/installed
	$(PYTEST) -m 'not ($(LONG))'
	TRITON_INTERPRET=1 $(PYTEST) -m 'not ($(LONG))' tests/interpreter

# `make test-all MINUTES=60`: tests that have not begun by then are skipped, and counted as skipped. Of the minutes, this
# many hundredths are for the command.
share = $(if $(MINUTES),--begin-within $(shell expr $(MINUTES) \* $(1) / 100))

# The same numbers in another environment: on processors with narrower vectors, with more than one thread.
define parity
	$(1) $(PYTEST) $(2) $(call share,7) -m 'parity and not compile'
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

# The python of this machine, with the torch and triton that it has: a CUDA build comes from no constraints file of ours.
gpu:
	PYTHONPATH=.:kernels $(PYTHON) -m bench.gpu.measure --save

tune:
	PYTHONPATH=.:kernels $(PYTHON) -m bench.gpu.tune

clean:
	rm -rf $(VENV) .venv-torch-* $(DATA) $(DATA).note.json
