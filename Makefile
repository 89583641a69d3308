# Two commands for a fresh machine with Python 3.11 and git: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[demo,test]"
	# By itself, it would pull the CUDA build of torch; the tests take its models.
	$(BIN)/pip install --quiet -c constraints.txt --no-deps torchvision
	touch $@

demo: setup
	$(BIN)/nce-fx rewrite resnet8 --data digits --retrain 30 --out nce-fx-out --force

test: setup
	$(BIN)/pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
