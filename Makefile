# Two commands on a fresh machine: `make demo` and `make test`. Everything runs in .venv, built from the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
export OMP_NUM_THREADS ?= 1
unexport PYTHONDONTWRITEBYTECODE # hundreds of processes would compile the package anew

.PHONY: demo test check check-system recipes notebooks peers storm sweep_storm soak fuzz audit stress clean

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "raylora needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m benchmarks.demo

test: $(STAMP)
	@$(BIN)/python -m pytest -q -n 2 --maxschedchunk 1 $(if $(PART),--part $(PART))

check: $(STAMP)
	@$(BIN)/ruff check raylora benchmarks tests
	@$(BIN)/ruff format --check raylora benchmarks tests
	@$(BIN)/mypy

check-system: $(STAMP)
	@RAYLORA_REQUIRE_SYSTEM=1 $(BIN)/python -m pytest -q -m system

recipes: $(STAMP)
	@RAYLORA_RECIPES=1 $(BIN)/python -m pytest -q tests/cluster/test_recipes.py

notebooks: $(STAMP)
	@$(BIN)/python -m benchmarks.notebooks

peers: $(STAMP)
	@$(BIN)/python -m benchmarks.peers.build

storm sweep_storm soak fuzz audit: $(STAMP)
	@$(BIN)/python -m benchmarks.$@

stress: $(STAMP)
	@$(BIN)/python -m benchmarks.stress_pages

clean:
	rm -rf .venv .peers build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find raylora benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
