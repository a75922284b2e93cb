# Set-up, tests, lint and the demo, all in a virtual environment that this file makes itself (.venv).

PYTHON ?= python3
N ?= auto
LINT ?= 1
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := setup
.PHONY: setup test test-all fuzz mutate lint format demo docs clean help

setup: $(READY) ## Make .venv with everything that development needs (the default)

# torch comes first and by its exact version: the open range of pyproject.toml would let pip look at every newer build.
# Without build isolation the backend is the pinned one too.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0 setuptools
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

# One process per core already, so one thread per process.
test: $(if $(filter-out 0,$(LINT)),lint) $(READY) ## Lint, then tests and doctests (LINT=0 leaves lint out; PYTEST_ARGS="-k scan")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(N) $(PYTEST_ARGS)

test-all: $(READY) ## Every test, the whole corpus of loops included (more than an hour on two cores)
	LINREC_LOOPS_FULL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(N) $(PYTEST_ARGS)

fuzz: $(READY) ## Random programs against their own loops (N=10000 SEED=0 MINUTES=60 JOBS=2); failures go to out/fuzz
	MALLOC_PERTURB_=165 OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run $(if $(filter auto,$(N)),200,$(N)) --seed $(or $(SEED),0) \
		$(if $(MINUTES),--minutes $(MINUTES)) --jobs $(or $(JOBS),1)

mutate: $(READY) ## Break linrec in one place at a time; some test must fail (N=300 SEED=0 FILES="analysis.rules")
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation.run $(if $(filter auto,$(N)),300,$(N)) --seed $(or $(SEED),0) \
		$(if $(FILES),--files $(FILES))

lint: $(READY) ## Style, format, types and import layers
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo

format: $(READY) ## Rewrite the files as lint wants them, where that is automatic
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

demo: $(READY) ## Train a recurrent memory on the Mackey-Glass series, as a loop and parallelised
	$(BIN)/python examples/mackey_glass.py --small

docs: $(READY) ## Build the documentation into out/site, with every warning an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(READY) ## Time training steps: loops as written, parallelised, and by hand (ARGS="mamba --rounds 5")
	$(PIP) -e '.[bench]'
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove build outputs and caches (the environment stays: rm -rf .venv)
	rm -rf build dist out/site *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
