# Everything a contributor types. The first run of `demo` or `test` makes .venv and installs into it; later runs touch
# no network until pyproject.toml or constraints.txt changes (the stamps below carry a checksum of both).

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SUM := $(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
RUN := $(VENV)/.run-$(SUM)
DEV := $(VENV)/.dev-$(SUM)
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-long lint format typecheck bench client screenshots clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUN) ## install what is needed, then run everything on http://127.0.0.1:8000 (PORT=… for another port)
	@exec $(PY) manage.py demo

# Files are given out in their order: those of a package follow each other and share its demo and its browser.
test: $(DEV) ## all tests that belong to every change (browser tests need Chromium; REQUIRE_BROWSER=1 insists)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rs -m "not long"

test-long: $(DEV) ## what takes many minutes: more examples, longer streams, more kills
	@failed=0; \
	$(PY) -m pytest -m long --timeout 7200 || failed=1; \
	GATE_EXAMPLES=100000 $(PY) -m pytest -n 2 --timeout 14400 tests/streaming/test_gate_properties.py || failed=1; \
	exit $$failed

lint: $(DEV) typecheck ## style, types, import directions, templates, migrations, system checks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/djlint --check --lint --quiet templates
	$(PY) manage.py makemigrations --check --dry-run
	$(PY) manage.py check --fail-level ERROR

typecheck: $(DEV) ## mypy, strict
	$(PY) -m mypy

format: $(DEV) ## rewrite Python and templates in the project's form
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	-$(VENV)/bin/djlint --reformat --quiet templates

bench: $(DEV) ## every benchmark, one table, and var/bench.json
	$(PY) manage.py bench --json var/bench.json

client: $(DEV) ## write what browsers load (static/client/*.js) from static/client/src, and the extension's copy of it
	$(PY) -m project.client_library

screenshots: $(DEV) ## take the pictures in docs/screenshots again (needs Chromium)
	$(PY) -m tests.e2e.screenshots

clean: ## remove the virtual environment and what tools left behind; the data directory stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Sluicegate needs Python 3.11 or later. Name one: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make virtual environments (on Debian: apt-get install python3-venv)." >&2; exit 1; }

$(RUN): | $(PY)
	@echo "Installing what Sluicegate needs to run into $(VENV) (once) …"
	@$(INSTALL) -e .
	@rm -f $(VENV)/.run-* && touch $@

$(DEV): | $(PY)
	@echo "Installing Sluicegate and its development tools into $(VENV) (once) …"
	@$(INSTALL) -e ".[dev]"
	@rm -f $(VENV)/.run-* $(VENV)/.dev-* && touch $@ $(RUN)
