# make demo    pretraining and evaluation on bundled images
# make test    the whole test suite
# make check   linter, type checker and the fast tests, for daily work
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test check lint clean

demo: $(READY)
	$(VENV)/bin/simclr demo

test: $(READY)
	$(VENV)/bin/python -m pytest

check: lint
	$(VENV)/bin/python -m pytest -m "not slow"

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check src tests benchmarks scripts results
	$(VENV)/bin/mypy

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[test]"
	touch $(READY)

clean:
	rm -rf $(VENV)
