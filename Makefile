# All that is needed is make and Python 3.11 or newer.

# The first of these that is new enough and can make virtual environments is taken.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
WORKERS ?= 2
UV_COMPILE := uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11

.PHONY: help setup demo test lint types soak bench lock clean
.DEFAULT_GOAL := help

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in it, at the versions of requirements.lock

demo: $(READY) ## show the whole thing on this machine, without any account
	@$(BIN)/agent demo $(ARGS)

test: $(READY) ## run the tests
	@$(BIN)/pytest -n $(WORKERS) $(ARGS)

lint: $(READY) ## check style, formatting, imports and types
	@failed=; \
	$(BIN)/ruff check || failed=1; \
	$(BIN)/ruff format --check || failed=1; \
	$(BIN)/lint-imports || failed=1; \
	$(BIN)/mypy || failed=1; \
	test -z "$$failed"

types: $(READY) ## check types
	@$(BIN)/mypy

soak: $(READY) ## kill everything at random until something is lost: ten minutes, or ARGS='--minutes 60'
	@PYTHONPATH=tests $(BIN)/python tests/crash/soak.py $(ARGS)

bench: $(READY) ## measure the daemon beside its peers; options in ARGS, such as ARGS=--full
	@$(BIN)/python benchmarks/bench.py $(ARGS)

lock: ## bring the locked versions up to date (needs uv)
	@$(UV_COMPILE) --upgrade --all-extras --group dev pyproject.toml -o requirements.lock
	@$(UV_COMPILE) --constraint requirements.lock pyproject.toml -o deploy/requirements.lock
	@$(UV_COMPILE) --constraint requirements.lock --extra emulator pyproject.toml -o deploy/emulator.lock
	@printf 'hatchling\n' | $(UV_COMPILE) --constraint requirements.lock - -o deploy/build.lock

clean: ## remove .venv and everything that tools have made
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@for python in $(PYTHON); do \
	    if $$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "This needs Python 3.11 or newer with its venv module; none of these is it: $(PYTHON)" >&2; \
	    echo "Debian, Ubuntu: apt install python3-venv. Elsewhere: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "making $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@
