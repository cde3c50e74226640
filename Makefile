# `make run` and `make test` work on a fresh clone: they set up what is missing.
.DEFAULT_GOAL := help
.PHONY: help setup proto released fmt lint type audit test test-full coverage mutation bench cost migrate run lock clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
COMPILE := $(BIN)/uv pip compile pyproject.toml --extra server --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet
PROTOS := key_service project_service operations_service

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything the other targets need

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: $$($(PYTHON) --version) found; try make PYTHON=python3.11" >&2; exit 1; }
	@echo "setting up .venv (once, about a minute)"
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	  $(PYTHON) -m venv .venv && pip="$(BIN)/pip"; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -m venv --without-pip .venv && pip="$(PYTHON) -m pip --python $(BIN)/python"; \
	else \
	  echo "$(PYTHON) has neither ensurepip nor pip: on Debian, apt-get install python3-venv" >&2; exit 1; \
	fi && \
	$$pip install -qq --disable-pip-version-check --require-hashes --no-deps --requirement requirements-dev.lock && \
	$$pip install -qq --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

proto: $(STAMP) ## generate code from protos/
	$(BIN)/python -m grpc_tools.protoc -Iprotos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --python_out=. --grpc_python_out=. \
	  --mypy_out=. --mypy_grpc_out=. $(PROTOS:%=authsvc/v1/%.proto)

released: $(STAMP) ## record protos/ as released: `buf breaking` compares with it
	$(BIN)/buf build -o protos/released.binpb

fmt: $(STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/buf format -w protos

lint: $(STAMP) ## ruff, import-linter, codespell, buf lint and breaking
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.binpb

type: $(STAMP) ## mypy, strict
	$(BIN)/mypy

audit: $(STAMP) ## look for known vulnerabilities of what the lock files pin
	@$(BIN)/python scripts/audit.py

# Tests wait a good part of their time, so there are more workers than processors.
WORKERS ?= $(shell echo $$(($$(nproc) * 2)))
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

test: $(STAMP) ## run every test in its short form, or those that TESTS names
	$(PYTEST) $(TESTS)

test-full: $(STAMP) ## run every test with all seeds, rounds and variants, or those that TESTS names
	$(PYTEST) --long $(TESTS)

coverage: $(STAMP) ## run the tests, likewise, and show what they cover; fails below the floor in pyproject.toml
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(TESTS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/python scripts/coverage_table.py

mutation: $(STAMP) ## break the pure modules in every small way, and show what no test notices
	$(BIN)/mutmut run
	@$(BIN)/mutmut results

bench: $(STAMP) ## measure against the targets, and write docs/performance.md: seventeen minutes, and needs wrk and zstd
	$(BIN)/python -m benchmarks

cost: $(STAMP) ## count the instructions of a cached ingest request; needs valgrind
	$(BIN)/python -m benchmarks.cost

migrate: $(STAMP) ## bring the key service's database to this version's schema
	$(BIN)/authsvc migrate

run: $(STAMP) ## start everything on loopback; print a link to the dashboard and a curl line that works
	@$(BIN)/python scripts/run.py

lock: $(STAMP) ## update the lock files to the newest versions
	$(COMPILE) --group dev --upgrade -o requirements-dev.lock
	$(COMPILE) --constraint requirements-dev.lock -o requirements.lock

clean: ## remove .venv and caches; state in var/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* htmlcov mutants *.egg-info
