# `make run` and `make test` set up .venv by themselves; `make help` lists the rest.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# Stages are commands of the environment, and DVC starts them by name.
# (The shell's own name for this directory: in make's, it would expand a dollar sign once more.)
IN_VENV := PATH="$$PWD/$(BIN):$$PATH"
PIP := $(BIN)/python -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test test-fast bench real-data chaos setup setup-dev setup-bench lint format lock clean

help: ## list the targets
	@echo "Targets (PYTHON=$(PYTHON), an interpreter of version 3.11 or newer):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

run: setup ## run what is out of date in the pipeline, then print the results
	@[ -e .git ] || git rev-parse --git-dir >/dev/null 2>&1 || $(BIN)/dvc config --local core.no_scm true
	@echo "running the pipeline: dvc repro"
	@$(IN_VENV) dvc repro
	@echo
	@$(BIN)/prlhf summary

test: setup-dev lint ## run linter, format check, type checker and all tests
	@echo "pytest -n $(WORKERS)"
	@$(IN_VENV) OMP_NUM_THREADS=1 pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: setup-dev ## run the tests of single modules only, in a few minutes
	@$(IN_VENV) OMP_NUM_THREADS=1 pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	    -m "not e2e and not slow" --ignore=tests/bench

bench: setup-bench ## measure training, users and generation on models/base, and write docs/benchmarks.md
	@$(BIN)/python -m benchmarks.training
	@$(BIN)/python -m benchmarks.users
	@$(BIN)/python -m benchmarks.generation

real-data: setup ## measure P-DPO on people's choices in PRLHF_REAL_DATA, and write docs/results.md (hours)
	@$(IN_VENV) dvc repro base_model
	@$(BIN)/python -m benchmarks.real_data

chaos: setup ## be hard on the pipeline for an hour, and write docs/reliability.md
	@$(IN_VENV) python -m benchmarks.chaos

setup: $(VENV)/.installed ## install everything pinned into .venv

setup-dev: $(VENV)/.installed-dev ## the same, with the tools for development

setup-bench: $(VENV)/.installed-bench ## the same, with what benchmarks compare with

lint: setup-dev ## everything that `make test` checks without running the code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/prlhf params docs --check
	$(BIN)/prlhf lock check
	$(BIN)/python tools/pin_versions.py --check

format: setup-dev ## format the code and mend what the linter can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: setup-dev ## pin the versions that are installed in .venv
	$(BIN)/python tools/pin_versions.py

clean: ## remove .venv and tools' caches; results, checkpoints and DVC's cache stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "error: PYTHON=$(PYTHON): Python 3.11 or newer is needed, found" \
	        "$$($(PYTHON) -V 2>/dev/null || echo none) (try make PYTHON=python3.11)" >&2; exit 1; }
	@echo "setup: creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setup: installing PyTorch (the largest download)"
	@$(PIP) torch
	@echo "setup: installing prlhf and its other dependencies (a few minutes)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.installed
	@echo "setup: installing the tools for development"
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(VENV)/.installed
	@echo "setup: installing what the benchmarks compare with"
	@$(PIP) -e '.[bench]'
	@touch $(VENV)/.installed $@
