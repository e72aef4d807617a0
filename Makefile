# Two commands on a fresh machine: `make run`, `make test`. They need Python 3.11, git and a package registry.
PYTHON ?= python3
UV = .venv/bin/uv
RUN = $(UV) run --no-sync

.PHONY: run test test-all check format clean

run: .venv/.installed
	$(RUN) siloray run examples/heart_disease/job.yaml

test: .venv/.installed
	$(RUN) pytest -m "not slow"

test-all: .venv/.installed
	$(RUN) pytest

check: .venv/.installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports

format: .venv/.installed
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

# uv lives in the project's own environment, wherever the machine has none.
$(UV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Siloray needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv

.venv/.installed: $(UV) pyproject.toml uv.lock
	$(UV) sync --frozen --inexact --all-extras --compile-bytecode
	touch $@

clean:
	rm -rf .venv
