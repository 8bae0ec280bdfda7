# `make demo` and `make test` need nothing but Python >= 3.10 and make: they create .venv and install into it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint coverage proto bench-verify mutations layers build clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# A stamp per kind of installation, made again when pyproject.toml changes. `python -m venv` on an existing .venv keeps it.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## SimpleNet: convert and verify it layer by layer, without network (WEIGHTS=... to use yours)
	$(BIN)/caffe-port demo --force $(WEIGHTS)

test: $(VENV)/.installed-test  ## the whole test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -q $(ARGS)

coverage: $(VENV)/.installed-test  ## the suite with coverage of caffe_port
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -q --cov --cov-report=term $(ARGS)

lint: $(VENV)/.installed-test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proto: $(VENV)/.installed-test  ## proto/caffe.proto -> caffe_port/caffe.binpb
	$(BIN)/python -m grpc_tools.protoc -Iproto --descriptor_set_out=caffe_port/caffe.binpb caffe.proto

bench-verify: $(VENV)/.installed-test  ## what verifying a VGG-16-sized net costs
	$(BIN)/python benchmarks/bench_verify.py

mutations: $(VENV)/.installed-test  ## plant slips, and write the table of docs/verification.md
	$(BIN)/python benchmarks/mutations.py --write docs/verification.md

layers: $(VENV)/.installed-test  ## docs/layers.md from the docstrings
	$(BIN)/python docs/make_layers.py

build: $(VENV)/.installed-test  ## wheel and sdist into dist/
	$(BIN)/python -m build

clean:  ## everything that make made
	rm -rf $(VENV) build dist demo .coverage .mypy_cache .pytest_cache .ruff_cache
