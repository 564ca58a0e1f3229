# make repro: the whole graph, small, with its score table last. make test: every test.
# Needs Debian's python3 (3.11 or newer) with venv, make and git; everything else goes to .venv.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Small tensors: more threads than cores make a step ten times slower.
export OMP_NUM_THREADS ?= 1

.PHONY: setup repro scores test check format clean lock

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

repro: setup
	dvc repro
	@$(MAKE) --no-print-directory scores

scores: setup
	@python src/score_table.py

check: setup
	ruff format --check .
	ruff check .
	mypy

format: setup
	ruff format .
	ruff check --fix .

test: check
	pytest

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache logs dvc_plots

# Pin what the virtual environment holds. torch's local build label is left out: it differs by machine.
lock: setup
	@{ echo "# Every dependency pinned, development tools included. Made with: make lock"; \
	  pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu//'; } > requirements.lock
