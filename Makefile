# Two commands for a fresh machine with Python 3.11 and git: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-quick check audit docs flows

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[demo,test]"
	# By itself, it would pull the CUDA build of torch; the tests take its models.
	$(BIN)/pip install --quiet -c constraints.txt --no-deps torchvision
	touch $@

demo: setup
	$(BIN)/nce-fx rewrite resnet18 --model-args '{"width": 4}' --data digits --retrain 30 --end-bits plan --no-trial --out nce-fx-out --force

# A process a core, eight at the most: each holds a PyTorch.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

test: setup
	$(BIN)/pytest $(PARALLEL)

# A sample of each test, in about a minute: for those who work on the code.
test-quick: setup
	$(BIN)/pytest $(PARALLEL) --quick

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known faults of the packages in constraints.txt. It asks PyPI for them, so the gate, which may be offline, does not run it.
audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --no-deps --disable-pip -r constraints.txt

# What reads QONNX, in a folder that the other tests do not see: finn-plus asks for older releases of what they need.
flows: .venv/flows/installed

.venv/flows/installed: .venv/installed tests/flows.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --retries 1 --timeout 30 --target .venv/flows -r tests/flows.txt
	touch $@

# The docs as a site, in site/.
docs: setup
	$(BIN)/zensical build --strict
