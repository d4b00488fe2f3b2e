# make run    creates .venv, installs, fetches the default checkpoint's base weights, opens the app
# make test   creates .venv, installs the test extras, runs the whole test suite
# make check  lint, formatting and types
# make evals  measures the default checkpoint into build/card; TEXT=folder of held-out dialogues and books
#
# PYTHON=python3.12 make run   uses another interpreter; PYTEST_ARGS="tests/store -x" make test   runs a part.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
TEXT ?=
WORKERS ?= 2

.PHONY: run test check evals format coverage clean

run: $(VENV)/.installed
	@$(BIN)/infinichat models pull
	@$(BIN)/infinichat

# The tests of the real model need its weights; without a way to fetch them they are skipped.
test: $(VENV)/.installed-dev
	@$(BIN)/infinichat models pull || echo "The tests that need the default model's weights are skipped."
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

evals: $(VENV)/.installed-dev
	$(BIN)/infinichat eval card --out build/card --workers $(WORKERS) $(if $(TEXT),--filler "$(TEXT)")

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

coverage: $(VENV)/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q --cov --cov-report=term $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .coverage

# The stamps make a second run instant; a changed pyproject.toml installs again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] < (3, 15) else \
	  f"infinichat needs Python 3.11 to 3.14; $(PYTHON) is {v[0]}.{v[1]}. Next: make run PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

# torch in a step of its own: pip then prefers a CPU build where one is at hand, and the next step keeps it.
$(VENV)/.torch: $(VENV)/.created
	$(BIN)/python -m pip install $$(sed -n 's/^ *"\(torch>=[^"]*\)",.*/"\1"/p' pyproject.toml | tr -d '"')
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
