# make demo: the whole TVKD pipeline on this machine; make demo-drdo: DRDO's. make test: all tests, in two processes; make docs: the documentation.
# Each installs what it needs, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-drdo noise test lint docs clean

demo: $(VENV)/installed-base
	$(BIN)/python launch/demo.py --output demo_output

demo-drdo: $(VENV)/installed-base
	$(BIN)/python launch/demo_drdo.py --output demo_output

# DRDO's claim in miniature (about an hour on 2 cores), into runs/noise_robustness
noise: $(VENV)/installed-test
	$(BIN)/python experiments/noise_robustness.py

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# site/index.html, to be opened from disk; warnings (dead links, pages without a place) are errors
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-base: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -qq --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -qq --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/installed-base $(VENV)/installed-docs

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -qq --constraint constraints.txt --editable '.[docs]'
	touch $@ $(VENV)/installed-base

clean:
	rm -rf demo_output site build dist *.egg-info
