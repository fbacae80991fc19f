PYTHON ?= python3.11
PIP = .venv/bin/pip install -q -c constraints.txt

.PHONY: demo dist test test-slow test-cuda test-docker test-peers engines test-engines lint benchmarks bench-cuda

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
	.venv/bin/python -m pytest -n 2 --timeout 300

# tests of one file share what it builds, and so one process
test-slow: .venv/installed-dev
	.venv/bin/python -m pytest -m slow -n 2 --dist loadfile --timeout 900

# without a card every test is skipped with the reason; MM_TEST_DEVICE=cpu tries the tests themselves
test-cuda: .venv/installed-dev
	.venv/bin/python -m pytest -m cuda -rs

# as root; on Debian: apt-get install buildah debootstrap
test-docker: .venv/installed-dev
	.venv/bin/python -m pytest -m docker tests/docker

# a separate environment: TRL installs 1.5 GB of its own, and must not determine the versions of the main environment
.venv-peers/installed: setup.py constraints.txt
	test -d .venv-peers || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q -c constraints.txt torch
	.venv-peers/bin/pip install -q -c constraints.txt -e ".[dev,peers]"
	touch $@

test-peers: .venv-peers/installed
	.venv-peers/bin/python -m pytest -m peers

# programs that exports are tried in, each in a folder of its own, with a stamp that is written last; node 20 or newer
NODE_LLAMA_CPP = 3.21.1
engines: build/engines/installed build/engines/vllm/installed build/engines/transformers4/installed

build/engines/installed: Makefile
	mkdir -p build/engines
	cd build/engines && npm install --no-fund --no-audit --ignore-scripts --omit=optional \
		node-llama-cpp@$(NODE_LLAMA_CPP) @node-llama-cpp/linux-x64@$(NODE_LLAMA_CPP)
	touch $@

# what a list does not say is not installed: tests/engines/vllm.txt says why
build/engines/%/installed: tests/engines/%.txt
	@echo "Installing $* into $(@D): up to five minutes; vllm takes 2.5 GB."
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q -c constraints.txt torch
	$(@D)/bin/pip install -q --no-deps -r $<
	touch $@

# a test is skipped with the reason if its engine or Go (on Debian: apt-get install golang-go) is missing
test-engines: .venv/installed-dev engines
	.venv/bin/python -m pytest -m engines -rs

# the wheel is built from the sdist, so that both are complete; test with pytest -m slow tests/project/test_dist.py
dist: .venv/installed-dev
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt .venv/bin/python -m build

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/mypy

# without a card it says so and exits with 2
bench-cuda: .venv/installed-dev
	.venv/bin/python benchmarks/card.py

benchmarks: .venv/installed-dev
	.venv/bin/python benchmarks/train_speed.py
	.venv/bin/python benchmarks/moe_speed.py
	.venv/bin/python benchmarks/memory.py
	.venv/bin/python benchmarks/decode.py
	.venv/bin/python benchmarks/grpo_speed.py
	.venv/bin/python benchmarks/startup.py
	.venv/bin/python benchmarks/needle.py
