.PHONY: demo test lint
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

demo: $(STAMP)  ## set up the environment and resynthesise the bundled clip, or FILE=my.wav
	$(VENV)/bin/python examples/demo.py $(FILE)

test: $(STAMP)  ## set up the environment and pass the tests
	$(VENV)/bin/python -m pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check src tests examples
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

# torch 2.13.0 first: a bare `torch` drags a CUDA build onto a CPU machine.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --upgrade pip
	$(VENV)/bin/pip install -q torch==2.13.0
	$(VENV)/bin/pip install -q -e . --group dev
	touch $@
