# The short menu of what one can do here; `make` prints it. Everything runs in a virtual environment of
# its own, made on first use and renewed when setup.cfg or pyproject.toml change.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SCALE ?= 25
SEED ?= $(shell date +%s)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The steps of `make test` are in an order: servers, style, docs, tests.
.NOTPARALLEL:
.PHONY: help demo cluster test unit docs bench attack style servers clean

help:
	@echo 'make demo         run the example blog under gunicorn and print what to try'
	@echo 'make demo CHECK=1 play that story over HTTP and check every step'
	@echo 'make cluster      run it in a cluster: memcached nodes, three gunicorns, nginx (CHECK=1: and check that)'
	@echo 'make test         style, types, documentation and all tests (installs memcached, nginx, Varnish, Chromium and Firefox if it may)'
	@echo 'make unit         only the tests that need no server and no browser'
	@echo 'make docs         build the documentation in build/docs; a warning is an error'
	@echo 'make bench        the benchmarks, as ratios against other caches and servers (BENCH="hit import": some)'
	@echo 'make attack       the attacks of the tests, 25 times as many, with a new seed (SCALE=N, SEED=N)'
	@echo 'make style        format, lint and types; FIX=1 rewrites what can be rewritten'
	@echo 'make clean        remove the environment, caches and build output'
	@echo
	@echo 'PYTHON=python3.12 names another Python (3.10 or newer), VENV=.venv312 another environment.'

demo: $(VENV)/.demo
	$(BIN)/python -m examples.blog_flask.demo $(if $(filter-out 0,$(CHECK)),--check)

cluster: $(VENV)/.demo
	@$(BIN)/python tests/ensure_servers.py memcached nginx
	$(BIN)/python -m cluster $(if $(filter-out 0,$(CHECK)),check,up)

test: servers style docs
	$(BIN)/pytest -n auto --dist worksteal

unit: $(VENV)/.dev
	$(BIN)/pytest -n auto --ignore=tests/live --ignore=tests/faults --ignore=tests/benchmarks \
	    --ignore=tests/attacks/live

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W --keep-going --fresh-env --quiet --jobs auto docs build/docs
	@echo 'The documentation is in build/docs/index.html'

bench: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks $(BENCH)

# One test may take minutes here, so it is not taken for one that hangs.
attack: $(VENV)/.dev
	ATTACK_SCALE=$(SCALE) ATTACK_SEED=$(SEED) $(BIN)/pytest -n auto -o faulthandler_timeout=3600 tests/attacks

style: $(VENV)/.dev
ifneq ($(filter-out 0,$(FIX)),)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
else
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
endif
	$(BIN)/mypy $(wildcard wsgi_isr cluster)
	$(BIN)/python tests/language.py

servers: $(VENV)/pyvenv.cfg
	@$(BIN)/python tests/ensure_servers.py

clean:
	rm -rf $(VENV) .wsgi_isr .blog .cluster examples/site_django/data build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

# A failed attempt is removed: half an environment would look like a whole one to the next run.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "wsgi_isr needs Python 3.10 or newer; $(PYTHON) is not. Name another: make ... PYTHON=python3.11" >&2; \
	    exit 1; }
	@echo 'Setting up $(VENV) (once; takes a minute)'
	@$(PYTHON) -m venv --clear $(VENV) || { \
	    rm -rf $(VENV); \
	    echo 'Could not set up $(VENV). Debian and Ubuntu need: apt-get install python3-venv' >&2; \
	    exit 1; }

$(VENV)/.demo: setup.cfg pyproject.toml $(VENV)/pyvenv.cfg
	$(PIP) --editable '.[demo]'
	@touch $@

# `dev` contains `demo`, so both are done.
$(VENV)/.dev: setup.cfg pyproject.toml $(VENV)/pyvenv.cfg
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
