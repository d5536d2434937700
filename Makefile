# Every target does all of its own set-up: a bare Python 3.11 to 3.13 is enough (uv is used where
# it is found). The environment is made again when pyproject.toml changes.
SHELL := bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
STAMPS := pyproject.toml .ci/setup .ci/python
TEST_TOOLS := 'pytest>=8.3' 'pytest-xdist>=3.6' 'beartype>=0.20' 'polars>=1.20' \
  'pyarrow>=18' 'statsmodels>=0.14.4'
# statsmodels 0.15 would pull formulaic up.
LOWEST_TOOLS := $(TEST_TOOLS) 'statsmodels<0.15'
PYTEST := $(BIN)/python -m pytest
# A test's computations are small: one thread each, two processes.
WORKERS ?= 2

.PHONY: help demo test test-all smoke test-lowest smoke-arviz1 lint types floors docs bench clean ready

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The demo needs little; where the full environment is there already, that one is taken.
$(VENV)/.stamp-demo: $(STAMPS)
	.ci/setup $(VENV) plots -- 'statsmodels>=0.14.4'
	@touch $@

$(VENV)/.stamp-dev: $(STAMPS)
	.ci/setup $(VENV) dev,docs
	@touch $@ $(VENV)/.stamp-demo

ready: $(VENV)/.stamp-dev
	@$(BIN)/python -m compileall -q probkit

demo: $(VENV)/.stamp-demo  ## fit a hierarchical model to real data: verdict, summary, demo.nc, demo.html
	@$(BIN)/python -m compileall -q probkit
	$(BIN)/python examples/grunfeld.py

test: ready  ## the tests, without the slow ones
	PROBKIT_TYPECHECK=0 $(PYTEST) -q tests/mistakes
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "not slow" --durations 15

test-all: ready  ## all tests
	PROBKIT_TYPECHECK=0 $(PYTEST) -q tests/mistakes
	$(PYTEST) -n $(WORKERS) --dist loadfile --durations 30

smoke: ready  ## the short walk along the whole road
	$(PYTEST) -m smoke

test-lowest: .venv-lowest/.stamp  ## the smoke tests on the lowest version of every dependency
	.venv-lowest/bin/python -m pytest -m smoke

.venv-lowest/.stamp: $(STAMPS)
	rm -rf .venv-lowest
	.ci/setup .venv-lowest formula,plots --lowest --python "$$(.ci/python 3.11 3.11)" -- $(LOWEST_TOOLS)
	@touch $@

# ArviZ 1.x needs Python 3.12; without such an interpreter there is nothing to test, and it says so.
smoke-arviz1:  ## the smoke tests on Python 3.12 or later with ArviZ 1.x, where there is one
	@if python=$$(.ci/python 3.12 3.13); then \
	  $(MAKE) --no-print-directory .venv-arviz1/.stamp PYTHON_ARVIZ1=$$python && \
	  .venv-arviz1/bin/python -m pytest -m smoke; \
	else echo "smoke-arviz1: no Python 3.12 or 3.13 here, nothing was run"; fi

.venv-arviz1/.stamp: $(STAMPS)
	rm -rf .venv-arviz1
	.ci/setup .venv-arviz1 formula,plots --python "$(PYTHON_ARVIZ1)" -- 'arviz>=1,<2' $(TEST_TOOLS)
	@touch $@

lint: ready  ## style and imports (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: ready  ## types (pyright)
	$(BIN)/pyright

floors: ready  ## no floor imports one above it (import-linter)
	$(BIN)/lint-imports

docs: ready  ## the documentation, its pages executed, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: ready .venv-peers/.stamp .venv-gp-peers/.stamp  ## the measurements of benchmarks/README.md (hours, on a quiet machine)
	$(BIN)/python -m benchmarks.run

# nutpie runs PyMC models compiled by numba; PyMC brings its own ArviZ, so it lives apart.
.venv-peers/.stamp: $(STAMPS)
	.ci/setup .venv-peers "" -- 'nutpie>=0.16' 'pymc>=5.20,<6' 'numba>=0.60' 'statsmodels>=0.14.4'
	@touch $@

# For benchmarks/gp_speed.py: GPyTorch brings torch, so it lives apart too. tinygp gets our JAX.
# Torch's own index has it without CUDA (1.6 GB instead of 6): there the version is 2.13.0+cpu, which
# pip prefers to PyPI's 2.13.0.
.venv-gp-peers/.stamp:
	"$$(.ci/python 3.11 3.13)" -m venv .venv-gp-peers
	.venv-gp-peers/bin/python -m pip install --quiet --extra-index-url \
	  https://download.pytorch.org/whl/cpu 'torch==2.13.0' 'gpytorch>=1.14' 'tinygp>=0.3' \
	  'jax>=0.9,<0.11' 'scipy>=1.13'
	@touch $@

clean:  ## remove what the other targets made
	rm -rf .venv .venv-lowest .venv-arviz1 .venv-peers .venv-gp-peers .cache docs/_build docs/jupyter_execute \
	  .pytest_cache .ruff_cache .import_linter_cache demo.nc demo.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
