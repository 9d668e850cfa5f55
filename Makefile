# Everything sets up .venv by itself. PYTHON chooses the interpreter.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	    $$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Tests run side by side, one process a core; each computes with one thread.
SIDE   ?= -n auto --maxprocesses 8
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := torch>=2.11,<2.14
# Not quiet: a first installation takes minutes, and says what it fetches and how far it is.
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on

.PHONY: run test test-slow test-all lint mutants bench clean

run: $(VENV)/.installed
	$(BIN)/qkv train

test: $(VENV)/.installed-dev
	$(BIN)/ruff check qkv tests benchmarks
	$(BIN)/ruff format --check qkv tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not slow" $(SIDE)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow --durations=25 $(SIDE)

test-all: test test-slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix qkv tests benchmarks
	$(BIN)/ruff format qkv tests benchmarks

# Are tests able to fail? Of the functions in the files changed since BASE, or in WHOLE packages, SAMPLE mutants each; survivors are listed.
BASE   ?= HEAD~1
WHOLE  ?=
SAMPLE ?= 40
mutants: $(VENV)/.installed-dev
	$(PIP) -q -e '.[mutants]' '$(TORCH)'
	$(BIN)/python benchmarks/mutants.py --base $(BASE) --sample $(SAMPLE) $(WHOLE)

bench: $(VENV)/.installed-dev
	$(PIP) -e '.[bench]' '$(TORCH)'
	for b in train decode encode beam time_to_loss; do $(BIN)/python benchmarks/$$b.py || exit 1; done

clean:
	rm -rf $(VENV) mutants build *.egg-info .pytest_cache .ruff_cache .mypy_cache

# A CPU build of torch where the index has one; a CUDA build only where there is a GPU to use it.
$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer, with venv, is needed: make PYTHON=path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)' || $(PIP) '$(TORCH)' --index-url https://download.pytorch.org/whl/cpu
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[test,dev]'
	touch $@
