PYTHON ?= python3
BIN := .venv/bin

help: ## list what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

audit: .venv/.installed ## audit the reference model: prints the table and the path of the report
	@$(BIN)/engram audit --model reference --profile quick

test: .venv/.installed ## lint, types and all tests but the slow ones
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not slow"

test-slow: .venv/.installed ## the tests that take long, or need servers and a browser
	$(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile -m slow

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

.PHONY: help audit test test-slow clean
