# Everything from a bare machine:  make demo | check | test | test-full | bench
# Run by root, as in containers, each goes on as an ordinary account: limactl refuses root. Steps done are skipped.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The account that root goes on as; it is made when it is missing.
ACCOUNT ?= lima
# The distribution's own Python: root's may be unreadable for others.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(HOME)/.local/bin:$(PATH):/usr/sbin:/sbin

.PHONY: help
help:
	@echo 'make demo       run notebooks/01-first-kernel.ipynb in a Lima VM'
	@echo 'make check      lint, types, unit tests: minutes, no VM'
	@echo 'make test       check, and the tests on a real VM'
	@echo 'make test-full  test, and what takes longer'
	@echo 'make bench      measure kernels in VMs beside all others: 25 minutes'
	@echo 'make front-end  build the panels and the JupyterLab extension, where Node is'
	@echo 'make wheel      build the wheel into dist/'

ifeq ($(shell id -u),0)

.PHONY: demo check test test-full bench wheel setup front-end
demo check test test-full bench wheel setup front-end:
	tests/host/as-account.sh $(ACCOUNT) $@

else

.PHONY: setup
setup: $(VENV)/installed limactl image kernelspec

# What the front end is built of: the build itself (hatch_build.py) leaves out what is built already.
FRONT_END := $(wildcard widgets/*.json widgets/*.mjs) $(shell find widgets/src widgets/style widgets/schema -type f)

$(VENV)/installed: pyproject.toml hatch_build.py $(FRONT_END)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

.PHONY: front-end
front-end: $(VENV)/installed

# The build installs them too, where it has anything to build.
widgets/node_modules/.package-lock.json: widgets/package-lock.json
	@command -v npm >/dev/null || { echo 'The front end is checked by Node 20.19 or newer, with npm on the PATH.' >&2; exit 1; }
	npm --prefix widgets ci --loglevel=error

.PHONY: limactl image kernelspec
limactl:
	command -v limactl >/dev/null || \
	  if [ "$$(uname)" = Darwin ]; then brew install lima; else tests/host/limactl.sh $(HOME)/.local; fi

image: $(VENV)/installed
	if [ "$$(uname)" = Linux ]; then lima-kernels image build; fi

kernelspec: $(VENV)/installed
	lima-kernels install --sys-prefix

.PHONY: demo
demo: setup
	mkdir -p build
	cp notebooks/01-first-kernel.ipynb build/
	cd build && lima-kernels run 01-first-kernel.ipynb
	@echo "The executed notebook: $(CURDIR)/build/01-first-kernel.ipynb"

.PHONY: check
check: $(VENV)/installed widgets/node_modules/.package-lock.json
	ruff check .
	ruff format --check .
	mypy
	npm --prefix widgets run --silent check
	pytest --numprocesses 2 --dist worksteal -m 'not long' tests/unit

.PHONY: test
test: check setup
	pytest --numprocesses 2 tests/browser
	pytest -m 'not long' --durations=40 --durations-min=8 tests/vm

.PHONY: test-full
test-full: check setup
	pytest tests/browser
	pytest tests/unit tests/vm

# What kernels are measured beside, and nothing else needs.
$(VENV)/bench: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,bench]'
	touch $@

# Some parts only:  make bench ONLY=loopback,warm
.PHONY: bench
bench: $(VENV)/bench limactl image
	python -m tests.benchmarks --only '$(ONLY)'

.PHONY: wheel
wheel: $(VENV)/installed
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

endif
