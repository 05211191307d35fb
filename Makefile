# A fresh machine needs Python 3.11+, a JDK 17+ and Maven (the last two only for the tests).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 3  # of the tests, one more than two cores: many wait for a broker, a browser or a clock
.PHONY: setup demo test lint bench docs promises clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --compile-bytecode -e ".[compression]" --group dev
	@touch $@

setup: $(BIN)/.ready  ## create the virtual environment and install everything

demo: setup  ## replay bundled logs through the whole path, then serve the first page
	$(BIN)/inferwatch demo

lint: setup  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup  ## linters, then all tests, against a real Kafka broker and a real PostgreSQL
	@$(BIN)/python -m compileall -q monitor detectors storage tests benchmarks
	@$(BIN)/python -m tests.compiled & $(MAKE) --no-print-directory lint && wait $$!
	$(BIN)/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder -q

docs: setup  ## build the documentation as a site, strictly, into site/
	$(BIN)/zensical build --strict --clean

bench: setup  ## short forms of the speed benchmarks; results in benchmarks/results (takes a quiet machine)
	$(BIN)/python -m benchmarks.throughput --records 200000 --minutes 24 --rounds 2
	$(BIN)/python -m benchmarks.scoring --rounds 2
	$(BIN)/python -m benchmarks.scale --series 10 100 1000
	$(BIN)/python -m benchmarks.queries
	$(BIN)/python -m benchmarks.workers --records 200000 --minutes 24 --rounds 2
	$(BIN)/python -m benchmarks.live --series 1000 --windows 6
	$(BIN)/python -m benchmarks.retraining --days 1 --records 100000 --logs 6

promises: setup  ## every promise of docs/reliability.md put to the test, in full: takes hours
	$(BIN)/python -m benchmarks.promises

clean:  ## remove what was built
	rm -rf $(VENV) build dist site .cache .pytest_cache .mypy_cache .ruff_cache
