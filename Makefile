# make demo: set up and watch a small real training run.   make test: set up and run the tests.   Nothing else is needed first.
# PYTHON=/path/to/python3.11 picks another interpreter (3.11 or newer), VENV=dir another place for the virtual environment.

PYTHON ?= $(or $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name)))),python3.11)
VENV ?= .venv
PYTEST_WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

.PHONY: help demo test check bench gpu zoo chaos soak healthy attach-kills system-packages install-demo install-dev clean
.DEFAULT_GOAL := help

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

demo: install-demo ## set up and train a small model under gpuwatch (under a minute once installed)
	$(BIN)/gpuwatch demo $(DEMO_ARGS)

# The temporary folder is a short one: a socket's path has 107 bytes.
test: install-dev system-packages ## set up and run all tests (PYTEST_ARGS=... narrows them)
	folder=$$(mktemp -d /tmp/gw.XXXX) && trap 'rm -rf "$$folder"' EXIT && \
	  $(BIN)/python -m pytest --basetemp="$$folder/t" --numprocesses=$(PYTEST_WORKERS) --dist=loadfile $(PYTEST_ARGS)

check: install-dev ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install-dev ## every bench, quick (FULL=1: as long as the numbers in docs; BENCH_ARGS=--check: judge them)
	@set -e; for bench in $$(grep -l '= Bench(' tests/bench/*.py | grep -v harness.py); do \
	  echo "running $$bench" >&2; $(BIN)/python $$bench $(if $(FULL),,--quick) $(BENCH_ARGS); \
	done

zoo: install-dev ## a hundred labelled trainings: what the rules find, miss and invent (ZOO_ARGS="--check --half A")
	$(BIN)/python -m tests.zoo --markdown docs/benchmarks/zoo.md $(ZOO_ARGS)

chaos: install-dev system-packages ## the daemon and trainers killed, stopped and lied to, at length (about half an hour)
	GPUWATCH_CHAOS_ROUNDS=13 $(BIN)/python -m pytest tests/chaos tests/hostile $(PYTEST_ARGS)
	$(BIN)/python -m tests.hostile.fuzz --inputs 10000000

soak: install-dev ## ten million records through one daemon (about twenty minutes)
	GPUWATCH_SOAK_RECORDS=10000000 $(BIN)/python -m pytest tests/soak $(PYTEST_ARGS)

attach-kills: install-dev ## an attacher SIGKILLed at 200 random instants, inside the stop too (five minutes)
	GPUWATCH_ATTACH_KILLS=200 $(BIN)/python -m pytest tests/attach -k killed $(PYTEST_ARGS)

# Not part of CI: the disk takes 4 GB and root, the tests about an hour (ARM64_CPU=neoverse-n1: a processor without SVE).
attach-arm64: ## the attach tests in an emulated arm64 Linux
	[ -e "$${GPUWATCH_ARM64_FOLDER:-$${XDG_CACHE_HOME:-$$HOME/.cache}/gpuwatch-arm64}/disk" ] || tests/attach/arm64/vm.sh make
	tests/attach/arm64/vm.sh run $(or $(ARM64_CPU),max) $(PYTEST_ARGS)

# Plain checkout, no installation: the machine's own Python with its torch (GPU_PYTHON=...); GPU_ARGS=--full, --require, --dry-run.
GPU_PYTHON ?= python3
gpu: ## everything that needs a GPU, in less than 8 minutes, with a table (without one: a sentence, exit 0)
	@PYTHONPATH=.:hooks $(GPU_PYTHON) tests/gpu/run.py $(GPU_ARGS)

healthy: install-dev ## 100,000 healthy steps under every rule: none may raise an alarm (about two minutes)
	GPUWATCH_HEALTHY_STEPS=100000 $(BIN)/python -m pytest tests/detectors/test_false_alarms.py $(PYTEST_ARGS)

# Prometheus with promtool, a C compiler, strace: the tests run the real thing. Needs root only when one is missing.
system-packages:
	@.ci/system-packages

install-demo: $(VENV)/.installed-demo
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.11 or newer, or say make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is written last, so that an interrupted install is done again; a changed dependency outdates it.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing gpuwatchd[$*] into $(VENV) (the first time takes some minutes: it brings PyTorch)"
	$(PIP) install --constraint constraints.txt --editable '.[$*]'
	@touch $@

clean: ## remove the virtual environment, caches and built packages (recorded runs stay)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find gpuwatch hooks tests -name __pycache__ -type d -prune -exec rm -rf {} +
