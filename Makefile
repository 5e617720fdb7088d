# make test   checks everything;  make demo   a whole run on a few real photographs.
# Both set up a virtual environment in .venv (once) and need Python 3.11 or newer with pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test demo clean
.DELETE_ON_ERROR:

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

demo: .venv/.installed
	$(BIN)/python tools/demo.py

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dqcodec needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11"; exit 1; }
	@echo "Setting up .venv with PyTorch and the rest: several gigabytes, some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo
