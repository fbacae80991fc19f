PYTHON ?= python3.11
PIP = .venv/bin/pip install -q -c constraints.txt

.PHONY: demo dist test test-slow test-peers lint benchmarks

# torch is installed first, so that no other package chooses its build
.venv/installed: setup.py constraints.txt
	@echo "Installing mm and what it needs into .venv: one to two minutes on a fast network."
	test -d .venv || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e ".[dev]"
	touch $@

demo: .venv/installed
	@echo "Training a model of 0.6 million parameters, from its tokenizer to a chat: about four minutes on two cores."
	.venv/bin/mm run core --config examples/demo.toml

test: .venv/installed-dev
	.venv/bin/python -m pytest -n 2

test-slow: .venv/installed-dev
	.venv/bin/python -m pytest -m slow

# a separate environment: TRL installs 1.5 GB of its own, and must not determine the versions of the main environment
.venv-peers/installed: setup.py constraints.txt
	test -d .venv-peers || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q -c constraints.txt torch
	.venv-peers/bin/pip install -q -c constraints.txt -e ".[dev,peers]"
	touch $@

test-peers: .venv-peers/installed
	.venv-peers/bin/python -m pytest -m peers

# the wheel is built from the sdist, so that both are complete; test with pytest -m slow tests/project/test_dist.py
dist: .venv/installed-dev
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt .venv/bin/python -m build

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/mypy

benchmarks: .venv/installed-dev
	.venv/bin/python benchmarks/train_speed.py
	.venv/bin/python benchmarks/moe_speed.py
	.venv/bin/python benchmarks/memory.py
	.venv/bin/python benchmarks/decode.py
	.venv/bin/python benchmarks/grpo_speed.py
	.venv/bin/python benchmarks/startup.py
	.venv/bin/python benchmarks/needle.py
