# cnnlab: `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-bench

.DEFAULT_GOAL := help
.PHONY: help setup train test test-all torture verify check format wheel docs notes notebook book networks bench tensorboard clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the exact versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	$(call make_environment,$(VENV),dev)

$(PEERS)/.ready: pyproject.toml constraints.txt
	$(call make_environment,$(PEERS),bench)

# $(1): the folder, $(2): the extra of pyproject.toml
define make_environment
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "cnnlab needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make setup PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --disable-pip-version-check -e '.[$(2)]' -c constraints.txt
	@touch $(1)/.ready
endef

train: $(READY) ## train the default: a CNN on the UCI digits (ARGS='data=mnist trainer.epochs=2' for more)
	$(BIN)/python train.py $(ARGS)

test: $(READY) ## run the tests: every promise at a small count, without data sets or network
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

test-all: $(READY) ## run the long tests too: whole trainings, every network of torchvision, every compile mode
	$(BIN)/python -m pytest $(ARGS)

torture: $(READY) ## repeat kills, damage and attacks to their full figures into docs/reliability.md (ARGS='F1 F4' for some)
	$(BIN)/python docs/make_reliability.py $(ARGS)

verify: $(READY) ## run the tests where Linux gives them no network, a job of two namespaces, and look at pages in chromium
	CNNLAB_DATA= unshare --map-current-user --net $(BIN)/python -m pytest -m 'not slow' $(ARGS)
	$(BIN)/python -m pytest -n 0 tests/test_two_nodes.py
	$(BIN)/python -m pytest -n 0 -m browser

check: $(READY) ## lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY) ## build sdist and wheel into dist/, check them, and try the commands outside this folder
	rm -rf dist
	$(BIN)/python -m build --outdir dist . > dist.log || { cat dist.log; exit 1; }
	@rm dist.log
	$(BIN)/twine check --strict dist/*
	@place=$$(mktemp -d) && wheel=$$(ls $(CURDIR)/dist/*.whl) && \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $$place/installed $$wheel && \
		cd $$place && export PYTHONPATH=$$place/installed PATH=$$place/installed/bin:$$PATH && \
		cnnlab-train experiment=debug/fast run_dir=run && cnnlab-evaluate run=run && \
		$(CURDIR)/$(BIN)/python -c "import cnnlab, sys; sys.exit(not cnnlab.__file__.startswith('$$place'))" && \
		rm -rf $$place && echo "$$wheel works"

docs: $(READY) ## build the site of the docs into site/, every link checked (ARGS='-d FOLDER' puts it elsewhere)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

notes: $(READY) ## walk through the notes: docs/notes.md with its images and checks (ARGS='stride padding' for some)
	$(BIN)/python docs/make_notes.py $(ARGS)

book: $(READY) ## reproduce published experiments and write docs/book.md (ARGS='c1-30 c3-98 --seeds 3 --jobs 2')
	$(BIN)/python docs/make_book.py $(ARGS)

notebook: $(READY) ## run docs/notebook.ipynb and store its outputs in it
	$(BIN)/python docs/notebook_page.py

networks: $(READY) ## compare the known networks with their references into docs/networks.md, and draw README's network
	$(BIN)/python docs/make_networks.py

bench: $(PEERS)/.ready ## measure beside Lightning, Keras and a plain loop, in .venv-bench (ARGS='cnn --repeats 3' for less, --write to keep it)
	$(PEERS)/bin/python benchmarks/run.py $(ARGS)

tensorboard: $(READY) ## show the curves of all runs on this machine only (http://localhost:6006)
	$(BIN)/tensorboard --logdir runs --host 127.0.0.1

clean: ## remove the environments and caches, not the runs
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache build dist site
