# Two commands on a fresh machine: `make run`, `make test`. They need Python 3.11, git and a package registry.
PYTHON ?= python3
UV = .venv/bin/uv
BIN = .venv/bin

.PHONY: run test test-slow test-long check format clean

run: .venv/.installed
	$(BIN)/siloray run examples/heart_disease/job.yaml

# Two at a time, for two cores.
test: .venv/.installed
	log=$$(mktemp); $(BIN)/pytest -m "not slow" tests/unit tests/property > $$log 2>&1 & parts=$$!; \
	$(BIN)/pytest -m "not slow" --ignore tests/unit --ignore tests/property; whole=$$?; \
	wait $$parts; parts=$$?; cat $$log; rm $$log; exit $$((parts || whole))

test-slow: .venv/.installed
	log=$$(mktemp); $(BIN)/pytest -m hosts --durations=10 > $$log 2>&1 & hosts=$$!; \
	$(BIN)/pytest -m "slow and not long and not hosts" --durations=25; others=$$?; \
	wait $$hosts; hosts=$$?; cat $$log; rm $$log; exit $$((others || hosts))

test-long: .venv/.installed
	$(BIN)/pytest -m long

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

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
