# make train: set up what is missing and run the pipeline.   make help: the other commands.
PYTHON ?= python3
BIN := .venv/bin
# As typed, even with a $ in it, and only from the command line: a variable of the environment is no argument.
ARGS =
as_typed = '$(subst ','\'',$(value $(1)))'
flag = $(if $(filter command,$(origin $(1))),--$(2)=$(call as_typed,$(1)))
QUICK := tests/artifacts tests/docs tests/service tests/tasks tests/test_house.py

.PHONY: help train score history rollback promote reproduce gc up down test quick chaos soak bench audit check fix lock
.DEFAULT_GOAL := help

help: ## List the commands.
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 16

train: .venv/synced ## Run the pipeline once; ARGS="--help" lists every parameter.
	@$(BIN)/python -m flows train $(value ARGS)

score: .venv/synced ## Label images with the champion: ARGS="--images digits/ --output labels.csv".
	@$(BIN)/python -m flows score $(value ARGS)

history: .venv/synced ## Print who or what changed the champion, when and why.
	@$(BIN)/python -m flows history

rollback: .venv/synced ## Make the champion before the current one the champion again: REASON="…".
	@$(BIN)/python -m flows rollback $(call flag,REASON,reason)

promote: .venv/synced ## Make a version the champion by hand: VERSION=3 REASON="…".
	@$(BIN)/python -m flows promote $(call flag,VERSION,version) $(call flag,REASON,reason)

reproduce: .venv/synced ## Make a registered version again, and compare: VERSION=3.
	@$(BIN)/python -m flows reproduce $(call flag,VERSION,version)

gc: .venv/synced ## List which old runs can go, and how much space they take; ARGS="--apply" removes them.
	@$(BIN)/python -m flows gc $(value ARGS)

up: .venv/synced ## Start the servers, a worker, the deployments and the UI.
	@$(BIN)/python -m service.server up

down: .venv/synced ## Stop what `make up` started.
	@$(BIN)/python -m service.server down

test: .venv/synced browser ## Run the tests; ARGS="tests/artifacts -x" runs a part.
	$(BIN)/python -m pytest --numprocesses 3 --no-loadscope-reorder $(value ARGS)

quick: .venv/synced ## Run the tests that need no server and no TensorFlow, in under 30 seconds.
	$(BIN)/python -m pytest --quick --numprocesses 2 --quiet $(QUICK) $(value ARGS)

chaos: .venv/synced ## Cause every fault many times, and print what came of each; this takes hours.
	$(BIN)/python -m pytest tests/faults -m "slow or not slow" --timeout 0 $(value ARGS)

soak: .venv/synced ## Run the pipeline 200 times in a row, and print what grew; this takes an hour or more.
	$(BIN)/python -m pytest tests/faults/test_soak.py -m slow -s $(value ARGS)

bench: .venv/synced ## Measure what a run costs next to a notebook and plain Python: ARGS="--parts training --repeats 1".
	$(BIN)/python -m benchmarks $(value ARGS)

audit: .venv/synced ## Look for known vulnerabilities of the locked packages; this asks the package index.
	$(BIN)/uvx pip-audit --strict --disable-pip --require-hashes -r requirements.lock $(value ARGS)

fix: .venv/synced ## Format the code, and make the linter's safe repairs.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: .venv/synced ## Check format, lint, types and import directions.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lock: .venv/synced ## Resolve the dependencies of pyproject.toml again, into requirements.lock.
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --group dev \
		--python-version 3.11 --custom-compile-command "make lock" --upgrade pyproject.toml -o requirements.lock

# The virtual environment. It is made if it is missing, and updated if the lock is newer.
.venv/synced: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "error: Python 3.11, 3.12 or 3.13 is needed; name it: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet --disable-pip-version-check uv
	@echo "installing the locked packages into .venv …"
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@touch $@

# Debian's Chromium, if this user may install it. Without a browser, the browser tests are skipped and say so.
.PHONY: browser
browser:
	@for name in chromium google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo "installing Debian's package chromium with apt-get, for the browser tests …"; \
		apt-get update -qq && apt-get install -y -qq chromium >/dev/null || echo "chromium could not be installed"; \
	else \
		echo "no chromium is installed, so the browser tests will be skipped; Debian's package chromium has it"; \
	fi
