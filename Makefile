# Everything sets up .venv by itself. PYTHON chooses the interpreter; THREADS the cores that tests use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := torch>=2.11,<2.14

.PHONY: run test test-all lint bench clean

run: $(VENV)/.installed
	$(BIN)/qkv train

test: $(VENV)/.installed-dev
	$(BIN)/ruff check qkv tests benchmarks
	$(BIN)/ruff format --check qkv tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix qkv tests benchmarks
	$(BIN)/ruff format qkv tests benchmarks

bench: $(VENV)/.installed-dev
	$(BIN)/pip install -q --disable-pip-version-check -e '.[bench]' '$(TORCH)'
	for b in train decode encode beam time_to_loss; do $(BIN)/python benchmarks/$$b.py || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

# A CPU build of torch where the index has one; a CUDA build only where there is a GPU to use it.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check '$(TORCH)' || \
	  $(BIN)/pip install -q --disable-pip-version-check '$(TORCH)' --index-url https://download.pytorch.org/whl/cpu
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -e '.[test,dev]'
	touch $@
