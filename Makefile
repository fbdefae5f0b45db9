# Every target sets up what it needs: `make quickstart` and `make test` work on a bare machine with
# Python 3.11 or newer. PYTHON names the interpreter, VENV the environment, STORE the results.

PYTHON ?= python3
VENV ?= .venv
STORE ?= mae-store
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := mae_core studies cluster orchestrator
FAST := -m "not process and not slow" -n 2 --dist loadfile

export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test fast check format lint types docs docs-picture clean bench-handover bench-cli bench-feature-probe bench-laws \
	bench-coverage bench-advice bench-report bench-precision bars recipe-values reliability

quickstart: $(STAMP)
	$(BIN)/mae-study run quickstart --store $(STORE)

# All tests: first those that start processes or take seconds, then the fast lane with coverage,
# which is of this lane alone: tracing would slow the gangs, whose limits of time are tested.
test: $(STAMP)
	$(BIN)/python -m pytest -m "process or slow"
	$(BIN)/python -m pytest $(FAST) --cov --cov-report=term

# The tests that need no process of their own; tests/support/lanes.py says which they are.
fast: $(STAMP)
	$(BIN)/python -m pytest $(FAST)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# API pages from the docstrings. pdoc cannot read a few annotations and shows them as written.
docs: $(STAMP)
	$(BIN)/python -W "ignore:Error parsing type annotation" -m pdoc --no-show-source \
	  --docformat google \
	  --output-directory build/api $(PACKAGES)
	@echo "open build/api/index.html"

# The picture of the rooms in docs/architecture.md; a test asserts that it is current.
docs-picture: $(STAMP)
	$(BIN)/python docs/draw_rooms.py

bench-handover: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/handover.py

bench-feature-probe: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/feature_probe.py

bench-laws: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/laws.py

bench-coverage: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/interval_coverage.py

bench-advice: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/advice.py

bench-report: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/report.py

bench-precision: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/precision.py

bench-cli: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/cli.py

# The figures of the house that are kept: circles, sizes, types, names.
bars: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/bars.py

# Recipes of the paper's studies beside the published ones; writes the table of docs/deviations.md.
recipe-values: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/bench/recipe_values.py

# Sections can be run alone: make reliability SECTIONS="corruption stall"
reliability: $(STAMP)
	$(BIN)/python tests/reliability/run.py $(SECTIONS)

# torch first: DeepSpeed's build imports it, and must not fetch another one for itself. Its
# extensions are never compiled (DS_BUILD_OPS=0): a rank uses torch's fused AdamW.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mae-study needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch numpy
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -c constraints.txt \
	  --no-build-isolation -e '.[dev]'
	$(BIN)/python -m compileall -q $(VENV)/lib >/dev/null 2>&1 || true
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .coverage
