# The two commands are `make demo` and `make test`. Each target sets up .venv by itself: the first
# time, and again when pyproject.toml or constraints.txt have changed. With TORCH=2.11.0 (and PYTHON=
# any of 3.11 to 3.14) a target does the same in an environment beside it, of that torch.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-full test-gpu check-install lint docs bench clean

VENV := .venv$(addprefix -torch-,$(TORCH))
BIN := $(VENV)/bin
# The newest setting-up of each kind; an environment for development runs the demo too.
CORE := $(VENV)/core.stamp
DEV := $(VENV)/dev.stamp
DOCS := $(VENV)/docs.stamp
TESTED_SET := $(if $(TORCH),$(VENV)/)constraints.txt

# Processes that run the tests, each with one thread.
JOBS ?= 2
# More threads than this slow down a model as small as the demo's.
MAX_THREADS := 8

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PIP_NO_INPUT := 1

help:
	@echo "make demo       train a CLIP on emoji and judge it on designs it never saw (minutes)"
	@echo "make test       the tests (JOBS=2: processes; TORCH=2.11.0: with the oldest torch that works)"
	@echo "make test-full  the long tests alone: parity matrices, kills, fuzz"
	@echo "make test-gpu   the tests that need a CUDA device"
	@echo "make check-install  the wheel in an environment of its own (PYTHON=, TORCH=)"
	@echo "make lint       ruff, the floors (import-linter) and types (basedpyright)"
	@echo "make docs       the documentation site, into build/site"
	@echo "make bench      us and the alternative, side by side"
	@echo "make clean      remove .venv and caches; runs and data stay"

demo: $(CORE)
	@threads=$$(getconf _NPROCESSORS_ONLN); \
	if [ "$$threads" -gt $(MAX_THREADS) ]; then threads=$(MAX_THREADS); fi; \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$threads} $(BIN)/mmtrain demo $(ARGS)

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" $(ARGS)

test-full: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m "slow and not gpu" $(ARGS)

test-gpu: $(DEV)
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

check-install:
	$(or $(PYTHON),python3) tools/check_install.py $(if $(TORCH),--torch $(TORCH)) $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

bench: $(DEV)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf .venv .venv-torch-* build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Torch and torchvision come from the default index: a CPU-only torch would not fit torchvision.
$(CORE): pyproject.toml constraints.txt
	$(call make-venv)
	$(call name-torch)
	@echo "Setting up $(VENV); the first time this downloads about 5 GB ..."
	@$(BIN)/python -m pip install --quiet -c $(TESTED_SET) -e '.[demo]'
	@touch $@

$(DEV): pyproject.toml constraints.txt
	$(call make-venv)
	$(call name-torch)
	@echo "Setting up $(VENV) for development; the first time this downloads about 5 GB ..."
	@$(BIN)/python -m pip install --quiet -c $(TESTED_SET) -e '.[dev]'
	@touch $(CORE) $@

$(DOCS): pyproject.toml constraints.txt
	$(call make-venv)
	$(call name-torch)
	@echo "Setting up $(VENV) for the documentation ..."
	@$(BIN)/python -m pip install --quiet -c $(TESTED_SET) -e '.[docs]'
	@touch $@

# What goes with another torch, pip finds out: torchvision names the one that it was built for, and
# some torches refuse the newest setuptools.
define name-torch
	$(if $(TORCH),@{ grep -vE '^(torch|torchvision|torchao|setuptools)=' constraints.txt; echo 'torch===$(TORCH)'; } >$(TESTED_SET))
endef

# PYTHON, if it is given, else the first one here that is new enough.
define make-venv
	@test -x $(BIN)/pip && exit; \
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			$$python -m venv $(VENV) && exit; rm -rf $(VENV); exit 1; \
		fi; \
	done; \
	echo "mmtrain needs Python >= 3.11, and $(or $(PYTHON),python3) is" \
		"$$($(or $(PYTHON),python3) --version 2>&1); install one and run: make $(MAKECMDGOALS) PYTHON=path/to/python3.11" >&2; \
	exit 1
endef
