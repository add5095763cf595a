# The door: `make` lists what there is. Every target passes ARGS="…" on to the command behind it.
# make only calls; what needs thought is in infra/setup.sh (environment) and the aos command.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory

ARGS ?=
SEED ?= 1
VENV := .venv/bin
STAMP := .venv/.aos-setup
PYTHON ?= python3
# A SIGKILL of make itself ends the recipe's shell, that ends the command, and that (through the keeper) every child.
GUARD := $(shell setpriv --pdeathsig KILL true 2>/dev/null && echo setpriv --pdeathsig KILL)
ifneq ($(GUARD),)
SHELL := $(shell command -v setpriv)
.SHELLFLAGS := --pdeathsig KILL /bin/bash -euo pipefail -c
endif

.PHONY: help setup demo up test test-long lint bench golden simulate fuzz chaos soak clean

help: ## list the targets
	@echo 'make TARGET [ARGS="…"]  (ARGS goes to the command behind the target)'
	sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

setup: ## make the Python environment (.venv) from uv.lock; the other targets do it when needed
	@PYTHON='$(PYTHON)' GUARD='$(GUARD)' exec $(GUARD) bash infra/setup.sh $(STAMP) $(ARGS)

$(STAMP): pyproject.toml uv.lock infra/setup.sh
	@PYTHON='$(PYTHON)' GUARD='$(GUARD)' exec $(GUARD) bash infra/setup.sh $(STAMP)

demo: $(STAMP) ## work and learn in view: the whole system on this machine, about two minutes
	@exec $(GUARD) $(VENV)/aos demo $(ARGS)

up: $(STAMP) ## the whole local stack in the foreground; Ctrl-C stops it and leaves nothing
	@exec $(GUARD) $(VENV)/aos up $(ARGS)

test: $(STAMP) ## lint and every test below a minute, with coverage; ARGS goes to pytest
	@$(MAKE) lint ARGS=
	GUARD='$(GUARD)' exec $(GUARD) bash tests/run.sh $(ARGS)

test-long: $(STAMP) ## the tests over a minute: kills, restarts, replays
	@exec $(GUARD) $(VENV)/python -m pytest -m long $(ARGS)

lint: $(STAMP) ## ruff, its formatter and mypy (strict); ARGS goes to ruff check (--fix)
	@$(GUARD) $(VENV)/ruff check . $(ARGS)
	$(GUARD) $(VENV)/ruff format --check .
	cd src && exec $(GUARD) ../$(VENV)/mypy --config-file ../pyproject.toml

bench: $(STAMP) ## measure, one JSON line a run into benchmarks/history.ndjson
	@exec $(GUARD) $(VENV)/python -m benchmarks $(ARGS)

golden: $(STAMP) ## write the golden files and generated pages anew, to be reviewed as code
	@exec $(GUARD) $(VENV)/python -m tests.golden $(ARGS)

simulate: $(STAMP) ## the whole topology in memory under seeded crashes and delays; SEED=123 repeats a run
	@exec $(GUARD) $(VENV)/python -m tests.simulation --seed $(SEED) $(ARGS)

chaos: $(STAMP) ## the real stack under a seeded schedule of faults and an independent judge; ARGS="--suite kill --seed 1"
	@exec $(GUARD) $(VENV)/python -m tests.chaos $(ARGS)

soak: $(STAMP) ## a million tasks from 1,000 connections while broker and workers are killed; ARGS="--tasks 100000 --json"
	@exec $(GUARD) $(VENV)/python -m tests.chaos.soak $(ARGS)

fuzz: $(STAMP) ## hostile input at every codec and input topic; ARGS="--inputs 2000000 --seed 1 --json"
	@exec $(GUARD) $(VENV)/python -m tests.fuzz $(ARGS)

clean: ## remove the environment and what tools left in the checkout; the download cache stays
	@rm -rf $(ARGS) .venv .uv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
