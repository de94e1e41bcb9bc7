# `make demo` and `make test` are the README's two commands; each installs first where it must.

# The pins in constraints.txt were taken on 3.11, so it is asked for first.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
CPU_TORCH := https://download.pytorch.org/whl/cpu

.PHONY: help demo test test-fast check format bench docs wheel pins clean distclean
.DEFAULT_GOAL := help

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed  ## The whole system on a real shop's year; stays up until Ctrl-C
	@$(BIN)/raysys demo

# Most tests a file at a time, one process a core (at most 4); slow ones use the cores themselves.
SHARED := -n auto --maxprocesses 4 --dist loadfile

test: $(VENV)/.installed  ## Every test, the slow ones last
	@$(BIN)/python -m pytest -m "not slow" $(SHARED)
	@$(BIN)/python -m pytest -m slow --durations=15

test-fast: $(VENV)/.installed  ## Tests that neither start Ray nor take seconds each
	@$(BIN)/python -m pytest -m "not slow and not long" $(SHARED)

check: $(VENV)/.installed  ## Lint, format, types, import rules, Dockerfile, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint Dockerfile
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.installed  ## Mend lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## List the benchmarks and how long each takes
	@$(BIN)/python -m benchmarks

docs: $(VENV)/.installed  ## The documentation on http://127.0.0.1:8008, rebuilt as it changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8008

wheel: $(VENV)/.installed  ## dist/raysys-*.whl
	$(BIN)/python -m pip wheel -qq --no-deps --wheel-dir dist .

pins: $(VENV)/.installed  ## Write constraints.txt from what is installed now
	@$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable 2>/dev/null \
	  | .ci/pins > constraints.txt.new && mv constraints.txt.new constraints.txt

clean:  ## Remove caches and build outputs; keeps .venv and runs
	rm -rf site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find raysys tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Also remove .venv and runs
	rm -rf $(VENV) runs

# One torch for both kinds of machine: constraints.txt says `torch==X` without a local version.
# Where there is no GPU, PyTorch's CPU index offers `X+cpu`, which pip prefers; where that index
# cannot be reached, pip takes what it is configured with. Where there is a GPU, PyPI's is CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "raysys needs Python 3.11, 3.12 or 3.13 with its venv module" \
	  "(Debian: apt install python3-venv), or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@set -e; extra=cpu; index=; size="0.9 GB to download, 3.4 GB on disk"; \
	if nvidia-smi -L >/dev/null 2>&1; then \
	  extra=gpu; size="3.4 GB to download"; \
	elif [ "$$(uname -s)" = Linux ] && $(BIN)/python -c "import urllib.request as web; \
	  web.urlopen('$(CPU_TORCH)/torch/', timeout=5)" 2>/dev/null; then \
	  index="--extra-index-url $(CPU_TORCH)"; fi; \
	echo "Installing into $(VENV) ($$extra): $$size, 2 to 6 minutes"; \
	echo "  1 of 2: torch"; $(PIP) $$index torch; \
	echo "  2 of 2: everything else"; $(PIP) -e ".[$$extra,dev,docs]"; \
	touch $@; echo "  installed"
