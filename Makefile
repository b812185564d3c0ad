# make demo    pretraining and evaluation on bundled images
# make test    the whole test suite
# make fuzz    damaged and hostile files of every kind, 1,000 mutations of each; minutes
# make mutants faults put into the code one by one, each of which a test must notice
# make shm     pretraining with 64 MB and 1 MB of shared memory; needs root
# make docs    the documentation site, site/index.html; without network once its packages are installed
# make check   linter, type checker and the fast tests, for daily work
# make kills   commands killed before every file operation and at random moments; bit flips in what they wrote (30 min)
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test docs check lint clean kills fuzz mutants shm

demo: $(READY)
	$(VENV)/bin/simclr demo

test: $(READY)
	$(VENV)/bin/python -m pytest $(PARALLEL)

check: lint
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "not slow"

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check src tests benchmarks scripts results
	$(VENV)/bin/mypy

docs: $(VENV)/.docs
	$(VENV)/bin/mkdocs build

$(VENV)/.docs: $(READY)
	$(VENV)/bin/python -m pip install --quiet --editable ".[docs]"
	touch $@

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[test]"
	touch $(READY)

kills: $(READY)
	$(VENV)/bin/python benchmarks/reliability/kills.py
	$(VENV)/bin/python benchmarks/reliability/flips.py

fuzz: $(READY)
	$(VENV)/bin/python benchmarks/reliability/fuzz.py

mutants: $(READY)
	$(VENV)/bin/python benchmarks/reliability/mutants.py

shm: $(READY)
	sh benchmarks/reliability/shm.sh $(VENV)/bin/python

clean:
	rm -rf $(VENV)
