# Every target makes its own environment in .venv: nothing has to be installed or activated before.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
READY := .venv/.installed

# The networks here are small: torch's threads cost more than they bring. Override for large images.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test lint type bench check coverage clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

train: $(READY)  ## train an equivariant DQN agent on CartPole; more options: make train ARGS="-n 20000"
	@$(BIN)/equirl train --algo dqn --env CartPole-v1 --method equitune --seed 0 $(ARGS)

test: $(READY)  ## run the tests and the examples in the docstrings; a part of them: make test ARGS=tests/envs
	@$(BIN)/pytest -q -n auto --dist worksteal $(ARGS)

lint: $(READY)  ## check style and formatting
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

type: $(READY)  ## check the types
	@$(BIN)/mypy

bench: $(READY)  ## measure speed and memory
	@test -f tests/benchmarks/run.py || { echo "make bench: tests/benchmarks/run.py is missing" >&2; exit 1; }
	@$(BIN)/python -m tests.benchmarks.run $(ARGS)

check: lint type test  ## everything that continuous integration runs

coverage: $(READY)  ## run the tests and show which lines they miss
	@$(BIN)/pytest -q $(ARGS) --cov

clean:  ## remove caches and build products; .venv and logs stay
	@rm -rf build dist *.egg-info .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find agents envs equirl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first, by its pin, so that no other requirement chooses a different build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("equirl needs Python 3.10 or newer, \
	$(PYTHON) is %d.%d: name another one, as in make PYTHON=python3.12" % sys.version_info[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv; the first time takes minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
