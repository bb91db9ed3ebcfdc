# Two commands on a fresh machine: `make demo` runs the main job, `make test` the tests. Both install what they need.

# any Python finds a Python: 3.12 or newer, on the PATH, from pyenv, or in the usual places
PYTHON ?= $(shell for p in python3.13 python3.12 python3.14 python3 $$HOME/.pyenv/versions/3.1[2-9]*/bin/python3 /usr/local/bin/python3 /opt/python*/bin/python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && "$$p" -c 'import sys; print(sys.executable)' && break; done)
BOOT := .bootstrap
VENV := .venv
BIN := $(VENV)/bin
UV := $(BOOT)/bin/uv
STAMP := $(VENV)/.installed
SERVERS := .servers
export UV_PYTHON_DOWNLOADS := never
# Prefect's temporary server may need longer than its default of 20 seconds on a small machine
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS ?= 180
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1
# where this is set, every process compiles some 4,000 modules anew: 29 seconds instead of 8 before any work
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup servers demo test test-slow lint format bench compare clean lock

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.12 or newer is needed and none was found; install one, or run make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(UV) || { $(PYTHON) -m venv $(BOOT) && $(BOOT)/bin/python -m pip install --quiet --disable-pip-version-check uv; }
	@test -x $(BIN)/python || $(UV) venv --quiet --python "$(PYTHON)" $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(STAMP)

# servers that tests start on loopback, with versions of their own: a STAC API on PostgreSQL and a blob store
servers: $(SERVERS)/.installed

$(SERVERS)/.installed: $(STAMP) tests/servers/requirements.lock tests/servers/package-lock.json
	$(UV) venv --quiet --clear --python $(BIN)/python $(SERVERS)/venv
	$(UV) pip sync --quiet --python $(SERVERS)/venv/bin/python --require-hashes tests/servers/requirements.lock
	cp tests/servers/package.json tests/servers/package-lock.json $(SERVERS)/
	npm ci --prefix $(SERVERS) --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

demo: setup
	$(BIN)/clearcause demo

# on every core, up to four: a process that tests the model takes some 2 GB
test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.run

# the method's parts against each other, on a simulated archive; an hour on two cores
compare: setup
	$(BIN)/python -m benchmarks.methods

# pins of everything, with digests, for every platform, and of what an image holds and is built with; names no index
lock: $(STAMP)
	$(UV) pip compile pyproject.toml --group dev --extra tensorboard --extra openvino --universal --python-version 3.12 --generate-hashes \
		--no-emit-index-url --no-header --quiet --upgrade --output-file requirements.lock
	$(UV) pip compile pyproject.toml --universal --python-version 3.13 --constraint requirements.lock --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --quiet --output-file deploy/requirements.lock
	printf '%s\n' editables hatchling uv | $(UV) pip compile - --universal --python-version 3.13 --generate-hashes \
		--constraint requirements.lock --no-emit-index-url --no-header --no-annotate --quiet --upgrade \
		--output-file deploy/requirements-build.lock

clean:
	rm -rf $(VENV) $(BOOT) $(SERVERS) out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
