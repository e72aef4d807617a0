# Two commands on a fresh machine: `make run`, `make test`. They need Python 3.11, git and a package registry.
PYTHON ?= python3
UV = .venv/bin/uv
BIN = .venv/bin

.PHONY: run test test-slow test-long check format clean

run: .venv/.installed
	$(BIN)/siloray run examples/heart_disease/job.yaml

# Three lines of like length at once, for two cores: tests wait now and then. The last has Ray's contract tests first.
QUICK = $(BIN)/pytest -m "not slow"
test: .venv/.installed
	logs=$$(mktemp -d); $(QUICK) tests/unit --ignore tests/unit/privacy > $$logs/unit 2>&1 & unit=$$!; \
	$(QUICK) tests/property tests/unit/privacy > $$logs/property 2>&1 & property=$$!; \
	$(QUICK) --ignore tests/unit --ignore tests/property; rest=$$?; \
	wait $$property; property=$$?; wait $$unit; unit=$$?; \
	cat $$logs/property $$logs/unit; rm -r $$logs; exit $$((unit || property || rest))

# Two lines of like length: whole runs, which start Ray and servers; and tests on hosts, which mostly wait, parts, and
# those whole runs that need no Ray in pytest's own process.
WHOLE = tests/browser tests/contract tests/integration
APART = $(patsubst %,tests/integration/test_%.py,ai4i breaching disk_full dp_digits dp_heart dp_membership fashion_curve \
	fashion_fixture flamby_local runs_on_s3 sealed_sums tracking_faults)
SLOW = $(BIN)/pytest -m "slow and not long and not hosts" --durations=25
test-slow: .venv/.installed
	log=$$(mktemp); ( $(BIN)/pytest -m hosts --durations=10; hosts=$$?; \
	$(SLOW) tests $(WHOLE:%=--ignore %); parts=$$?; $(SLOW) $(APART); exit $$(($$? || parts || hosts)) \
	) > $$log 2>&1 & others=$$!; \
	$(SLOW) $(WHOLE) $(APART:%=--ignore %); whole=$$?; \
	wait $$others; others=$$?; cat $$log; rm $$log; exit $$((others || whole))

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
