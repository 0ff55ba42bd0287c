# Short names for the commands of CONTRIBUTING.md; each works on a fresh checkout.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help install lint types layers docs test test-slow bench ci clean

help: ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## make the virtual environment with everything for development

lint: install ## ruff
	$(BIN)/ruff check .

types: install ## mypy, held to .ci/types-baseline.json (and lowering it)
	$(BIN)/python .ci/types --lower

layers: install ## import-linter: imports point one way
	$(BIN)/lint-imports

docs: install ## the pages of docs/, to docs/_build; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

test: install ## the tests, without the slow ones
	$(BIN)/python -m pytest

test-slow: install ## the slow tests alone
	$(BIN)/python -m pytest -m slow

bench: install ## compare all recommenders on the embedded world (about ten minutes)
	$(BIN)/python benchmarks/run_all.py

ci: ## all that continuous integration runs, in an environment of its own
	.ci/run

clean: ## remove caches, not results
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache *.egg-info
