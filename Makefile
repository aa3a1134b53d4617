# What a newcomer needs: make up, make test, make setup. Everything is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
# A CPU build of torch by default. For CUDA 12.6, say: make up TORCH_INDEX=https://download.pytorch.org/whl/cu126
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Further options of `nestling up`, such as ARGS="--port 9000 --no-train"
ARGS ?=
CHROMIUM := $(firstword $(shell command -v chromium chromium-browser google-chrome 2>/dev/null))
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: up setup test lint need-chromium clean

up: setup
	$(VENV)/bin/nestling up $(ARGS)

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV) || { echo "No venv module. Install it with: apt-get install python3-venv"; exit 1; }
	@echo "Installing torch and Nestling into $(VENV); this takes a few minutes the first time."
	$(PIP) --retries 1 --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@touch $@

test: need-chromium lint
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

need-chromium:
	@test -n "$(CHROMIUM)" || { echo "The page's test needs Chromium. Install it with: apt-get install chromium"; exit 1; }

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
