# What a bare checkout can do with Python (3.10 or newer, with venv) and make alone: `make` lists it.
#
# PYTHON=python3.13     the interpreter the virtual environment is made with
# VENV=.venv            where that environment is
# TESTS=tests.trust     the tests to run
# JOBS=1                how many tests run at once; as many as there are cores
# TRIAL_FLAGS=...       what else trial is told
# DEMO_FLAGS=...        what else the demo is told, such as --port 127.0.0.1:9443
# COUNT=1000            how many chains `make fuzz` damages (and ten times as many records)
# MINUTES=10            how long `make soak` takes; random faults get what the others leave
# SEED=abc              the damage of an earlier `make fuzz`, or the faults of `make soak`, once more
# MTLSTUNNEL_SMALL=1    in the environment: only the tests of the smaller set

PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
TRIAL_FLAGS ?=
PIP_FLAGS ?=
COUNT ?= 100000
MINUTES ?= 10
SEED ?=

BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS)
VERSIONS = $(BIN)/python -c 'import platform; from importlib.metadata import version; \
	print("$(TESTS) on Python " + platform.python_version(), \
	*(f"{name} {version(name)}" for name in ("Twisted", "pyOpenSSL", "cryptography")), sep=", ")'
TRIAL = -m twisted.trial --temp-directory=.build/trial $(PARALLEL) $(TRIAL_FLAGS) $(TESTS)

.PHONY: help demo test coverage fuzz soak lint format refused docs bench bench-quick bench-workers bench-latency clean

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/stamp-run ## a door with throw-away certificates on port 8443, and the curl lines to try it
	@echo "== demo: Ctrl-C ends it"
	@exec $(BIN)/twistd -n --pidfile= mtlstunnel --demo $(DEMO_FLAGS)

test: PARALLEL = -j$(JOBS)
test: $(VENV)/stamp-test ## the tests; those that need a program that is not here are skipped
	@echo "== test: `$(VERSIONS)`"
	@mkdir -p .build
	@$(BIN)/python $(TRIAL)

coverage: $(VENV)/stamp-test ## the tests, and which lines they ran
	@echo "== coverage: $(TESTS)"
	@mkdir -p .build
	@$(BIN)/python -m coverage run $(TRIAL)
	@$(BIN)/python -m coverage report

fuzz: $(VENV)/stamp-test ## damaged certificates and records, by the million: nobody may come in
	@exec $(BIN)/python -m tests.fuzz --count $(COUNT) $(if $(SEED),--seed $(SEED))

soak: $(VENV)/stamp-test ## loads and faults at full size; writes the table in docs/reliability.md
	@exec $(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) --write docs/reliability.md

lint: $(VENV)/stamp-lint ## ruff and mypy
	@echo "== lint: ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "== lint: ruff format --check"
	@$(BIN)/ruff format --quiet --check .
	@echo "== lint: mypy"
	@$(BIN)/mypy

format: $(VENV)/stamp-lint ## the form that `make lint` asks for
	@echo "== format"
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

refused: $(VENV)/stamp-test ## write the output in docs/refused.md anew
	@echo "== refused: docs/refused.md"
	@$(BIN)/python -m tests.pages.refused

docs: $(VENV)/stamp-docs ## the pages, in build/docs
	@echo "== docs: build/docs/index.html"
	@$(BIN)/python -m sphinx -q -W --keep-going -d .build/doctrees docs build/docs

bench: $(VENV)/stamp-test ## measure for half an hour, and write docs/performance.md and its plots
	@echo "== bench: docs/performance.md"
	@$(BIN)/python -m benchmarks --write docs/performance.md --plots docs/plots

bench-quick: $(VENV)/stamp-test ## measure roughly in under two minutes, write nothing
	@echo "== bench-quick"
	@$(BIN)/python -m benchmarks --quick

bench-workers: $(VENV)/stamp-test ## measure what two workers cost beside one process, write nothing
	@echo "== bench-workers"
	@$(BIN)/python -m benchmarks.sharing

bench-latency: $(VENV)/stamp-test ## measure round trips beside bulk downloads, write nothing
	@echo "== bench-latency"
	@$(BIN)/python -m benchmarks.latency

clean: ## remove what make made
	@echo "== clean"
	@rm -rf .venv .build build dist mtlstunnel.egg-info mtlstunnel-demo twisted/plugins/dropin.cache
	@find mtlstunnel twisted tests benchmarks docs .ci -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || :

# The environment is made anew when what the package needs has changed, and each target adds what it
# needs to it once.

$(VENV)/stamp-venv: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: mtlstunnel needs Python 3.10 or newer, and $(PYTHON) is not: try make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "== $(VENV): a new environment with `$(PYTHON) --version`"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/stamp-run: $(VENV)/stamp-venv
	@echo "== $(VENV): mtlstunnel and what it needs"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/stamp-test: $(VENV)/stamp-venv
	@echo "== $(VENV): mtlstunnel and what its tests need"
	@$(INSTALL) -e '.[test]'
	@touch $(VENV)/stamp-run $@

$(VENV)/stamp-lint: $(VENV)/stamp-venv
	@echo "== $(VENV): ruff and mypy"
	@$(INSTALL) -e '.[test,lint]'
	@touch $(VENV)/stamp-run $(VENV)/stamp-test $@

$(VENV)/stamp-docs: $(VENV)/stamp-venv
	@echo "== $(VENV): Sphinx"
	@$(INSTALL) -e '.[docs]'
	@touch $(VENV)/stamp-run $@
