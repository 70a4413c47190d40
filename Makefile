# Shorthand for the commands of the README; each sets up its own environment.
.PHONY: run test check figures attack mutants
PYTHON ?= python3

.venv/bin/loc-edit: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

run: .venv/bin/loc-edit
	.venv/bin/loc-edit run

test: .venv/bin/loc-edit
	.venv/bin/pytest -n auto --dist loadfile

check: .venv/bin/loc-edit
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

figures: .venv/bin/loc-edit
	.venv/bin/python scripts/make_figures.py

attack: .venv/bin/loc-edit
	.venv/bin/python scripts/attack.py

mutants: .venv/bin/loc-edit
	.venv/bin/pip install -q 'cosmic-ray>=8.7,<9' 'pytest-cov>=6'
	.venv/bin/python scripts/mutants.py
