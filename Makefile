# make repro: the whole graph, small, with its score table last. make test: every test.
# Needs Debian's python3 (3.11 or newer) with venv, make and git; everything else goes to .venv.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Small tensors: more threads than cores make a step ten times slower.
export OMP_NUM_THREADS ?= 1

.PHONY: setup repro scores test test-exchange text-setup check format clean lock
.PHONY: tower-and-questions decoders-and-datasets inspect-34b inspect-72b test-engine test-library

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# dvc runs stage after stage. Where stages take one core, two of it share them out: each names its
# stages (--single-item), since two may not visit the same one.
TWICE := @$(MAKE) --no-print-directory --jobs 2
ALONE := dvc --wait-for-lock repro --single-item

repro: setup
	dvc repro environment
	$(TWICE) tower-and-questions decoders-and-datasets
	dvc repro combine_34b combine_72b find_overlap
	$(TWICE) inspect-34b inspect-72b
	dvc repro
	@$(MAKE) --no-print-directory scores

tower-and-questions:
	$(ALONE) standin_vision prepare_eval prepare_pretrain
decoders-and-datasets:
	$(ALONE) standin_lm_34b standin_lm_72b prepare_sft
inspect-34b:
	$(ALONE) inspect_pretrain_34b inspect_sft_34b
inspect-72b:
	$(ALONE) inspect_pretrain_72b inspect_sft_72b verify_72b

scores: setup
	@python src/score_table.py

check: setup
	ruff format --check .
	ruff check .
	mypy

format: setup
	ruff format .
	ruff check --fix .

# The graph's tests alone, since they run it here; the others on both cores, in temporary directories.
test: check
	pytest tests/pipeline
	$(TWICE) test-engine test-library

test-engine:
	pytest tests/launch tests/parallel tests/train
test-library:
	pytest $(foreach room,launch parallel pipeline train,--ignore=tests/$(room))

# Opt-in: what we export, read by the programs it is for. Each has an environment of its own (3.5 GB
# for vLLM), and the checkpoints and answers of make repro are asked for.
EXCHANGE := .venv-exchange

test-exchange: setup $(EXCHANGE)/vllm/installed $(EXCHANGE)/megatron/installed
	pytest -s tests/exchange

$(EXCHANGE)/%/installed: requirements-exchange-%.lock pyproject.toml
	$(PYTHON) -m venv $(EXCHANGE)/$*
	$(EXCHANGE)/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	$(EXCHANGE)/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Opt-in: lm-evaluation-harness for the text benchmarks (dvc exp run -S text=decoders), apart, so that
# it alone says what it needs.
TEXT := .venv-text

text-setup: $(TEXT)/installed

$(TEXT)/installed: requirements-text.lock
	$(PYTHON) -m venv $(TEXT)
	$(TEXT)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf .venv $(EXCHANGE) $(TEXT) .pytest_cache .mypy_cache .ruff_cache logs dvc_plots

# Pin what the virtual environment holds. torch's local build label is left out: it differs by machine.
lock: setup
	@{ echo "# Every dependency pinned, development tools included. Made with: make lock"; \
	  pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu//'; } > requirements.lock
