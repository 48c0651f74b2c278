# The commands of the project. Each makes .venv on first use and reuses it while what is installed and compiled stays the same.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name)),$(name))))
STAMP := $(VENV)/.installed
INSTALLED := pyproject.toml constraints.txt setup.py hack_kernels/cpu/build.py $(wildcard hack_kernels/cpu/native/*)
BIN := $(VENV)/bin
comma := ,
# ucxx has wheels for these alone; elsewhere its tests skip with that reason.
EXTRAS := $(if $(filter Linux-x86_64 Linux-aarch64,$(shell uname -s)-$(shell uname -m)),dev$(comma)ucx,dev)

.PHONY: help demo test lint test-compose bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo          start everything on the embedded model, stream two completions, stop"
	@echo "make test          lint, types and tests"
	@echo "make lint          ruff and mypy alone"
	@echo "make test-compose  bring compose.yaml up on a Docker engine and use it"
	@echo "make bench         the quality of the KV formats on the embedded model"
	@echo "make clean         remove .venv and what the tools leave"

$(STAMP): $(INSTALLED)
	@command -v "$(PYTHON)" >/dev/null || { echo "packhorse needs Python 3.11 or newer; none was found. On Debian or Ubuntu: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "packhorse needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (once, some minutes) ..."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/packhorse demo

lint: $(STAMP)
	@echo "lint: ruff check, ruff format, mypy"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary

test: lint
	@echo "test: pytest"
	@$(BIN)/pytest -q -m "not compose"

test-compose: $(STAMP)
	@$(BIN)/pytest -q -m compose

bench: $(STAMP)
	@$(BIN)/packhorse bench quality

clean:
	rm -rf $(VENV) build dist *.egg-info hack_kernels/cpu/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
