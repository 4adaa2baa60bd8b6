# fairgate: `make run` serves real tokens, `make test` proves it. Needs Python 3.11+ with pip.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# What `make run` serves: Hugging Face ids or folders; empty: what fairgate finds.
MODEL ?=
EMBEDDING_MODEL ?=
LISTEN ?= 127.0.0.1:8080

CODE := gateway backends tests

# Ends the target where one of the commands $(1) is missing; $(2) are Debian's packages of them.
needs = for tool in $(1); do command -v $$tool >/dev/null || \
  { echo "make $@ needs $$tool (Debian: apt-get install $(2))"; exit 2; }; done

.PHONY: help
help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The product alone, from the versions that were tested.
$(VENV)/product: pyproject.toml deploy/requirements.lock
	@echo "fairgate: installing the gateway into $(VENV) ..."
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "fairgate needs Python 3.11 to 3.14; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make environments: install its venv module (Debian: python3-venv)"; exit 2; }
	@$(PIP) install --quiet --require-hashes -r deploy/requirements.lock
	@$(PIP) install --quiet --no-deps -e .
	@touch $@

# The product and what its tests and checks need.
$(VENV)/dev: $(VENV)/product deploy/requirements-dev.lock
	@echo "fairgate: installing the tests' tools into $(VENV) ..."
	@$(PIP) install --quiet --require-hashes -r deploy/requirements-dev.lock
	@touch $@

.PHONY: install engine
install: $(VENV)/product ## the gateway, into .venv
engine: $(VENV)/product ## vLLM, into an environment of its own
	@$(BIN)/fairgate engine install

.PHONY: run
run: engine ## real vLLM for chat and embeddings, the gateway in front
	@exec $(BIN)/fairgate up --listen $(LISTEN) \
	  $(if $(MODEL),--model '$(MODEL)') $(if $(EMBEDDING_MODEL),--embedding-model '$(EMBEDDING_MODEL)')

.PHONY: format style types fast check test soak bench bench-peers lock
format: $(VENV)/dev ## put the code into its form
	@$(BIN)/ruff check --quiet --fix-only $(CODE)
	@$(BIN)/ruff format --quiet $(CODE)

style: $(VENV)/dev
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)

types: $(VENV)/dev
	@$(BIN)/mypy gateway backends tests

fast: $(VENV)/dev
	@$(call needs,openssl redis-server,openssl redis-server)
	@$(BIN)/python -m pytest -q -m 'not e2e and not soak and not slow'

check: style types fast ## the fast part: form, types, layers, unit tests

test: style types engine ## everything, real vLLM and the real SDKs included
	@$(call needs,gcc openssl redis-server valgrind,gcc libc6-dev openssl redis-server valgrind)
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -m 'not soak'
	@$(BIN)/coverage report --skip-covered --skip-empty --fail-under=95

soak: $(VENV)/dev engine ## the long ones
	@$(BIN)/python -m pytest -m soak -s

bench: $(VENV)/dev ## cost and latency beside other proxies, on this machine
	@$(call needs,gcc,gcc libc6-dev)
	@$(BIN)/python -m tests.bench

bench-peers: $(VENV)/dev ## those proxies that the package index has, each by itself
	@$(BIN)/python -m tests.bench.install

lock: $(VENV)/dev ## resolve the dependencies anew
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --upgrade -o deploy/requirements.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --upgrade --extra dev -c deploy/requirements.lock -o deploy/requirements-dev.lock pyproject.toml
