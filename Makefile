# The commands of this project. Each works on a fresh machine with Python 3.11 or later; PYTHON=python3.12 picks another.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check bench install clean

demo: install ## set everything up, then search coefficients for MobileNetV2 on Fashion-MNIST
	$(BIN)/scalesearch run baseline=mobilenetv2

test: install ## all that a change can break, with a worker a core
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --durations 10

test-all: install ## and what takes long: kill loops, every experiment
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --durations 30 -m ""

bench: install ## every benchmark, one after the other: some hours on two cores
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

check: install ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(VENV)/installed ## the environment, with exactly the versions that were tested together

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scalesearch needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean: ## remove the environment; the workspace with what was trained stays
	rm -rf $(VENV)
