# The verbs of the README. Everything runs in .venv, which the first verb builds from requirements.lock.

# The newest Python that was tested, then one that the packages allow. A name may stand for none, as pyenv's do.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3.14; do \
	$$name -c 'import ensurepip' 2>/dev/null && echo $$name && break; done)
TORCH ?= auto
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
FAST := not ray and not mlflow and not long and not services and not chaos and not slow and not cluster and not gpu and not browser and not timing

.PHONY: help run test test-fast test-all test-cluster test-chaos bench cluster debian lint fmt up down clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run ## rebuild everything, with dashboards; ends with a summary
	@mnist-pipe up
	dvc repro
	@mnist-pipe summary

test: $(VENV)/.test ## what most changes can break, without services and DVC
	pytest -q -n 2

test-fast: $(VENV)/.test ## the library alone: without Ray, MLflow, services, DVC, the endpoint and the studies
	pytest -q -n 2 -m "$(FAST)" --ignore tests/cluster --ignore tests/serving --ignore tests/studies

test-all: $(VENV)/.test $(VENV)/.cluster debian ## everything, or what TIER says; the cluster's tests need root
	pytest -q -m "$(TIER)"

# What pip does not have comes from Debian. Without root nothing is installed, and the tests say why they are skipped.
test-cluster: $(VENV)/.test $(VENV)/.cluster debian ## a cluster in network namespaces of this machine; needs root, prints its times
	pytest -q -rs -s -m "cluster and not slow" tests/cluster

test-chaos: $(VENV)/.test $(VENV)/.cluster debian ## what breaks, counted: docs/reliability.md; needs root, an hour
	pytest -q -n 2 --no-loadscope-reorder -m chaos tests --junitxml .state/reliability.xml; code=$$?; python -m benchmarks.reliability .state/reliability.xml; exit $$code

# Debian starts the Prometheus that it installs, on every interface, and that one scrapes only itself.
debian:
	@[ "$$(id -u)" != 0 ] || { command -v ip && command -v wrk && command -v strace && command -v cc && command -v chromium && command -v prometheus && ls -d /usr/lib/postgresql/*/bin; } >/dev/null || \
		{ had=$$(command -v prometheus); apt-get update -q && apt-get install -q -y -o Acquire::Retries=3 --no-install-recommends iproute2 postgresql chromium wrk strace gcc libc6-dev prometheus && \
		{ [ -n "$$had" ] || ! command -v systemctl || systemctl disable --now prometheus || true; } >/dev/null 2>&1; }

bench: $(VENV)/.test ## every benchmark, some three hours: benchmarks/results.json, growth.png and the README's table
	[ -f data/normalized/train.parquet ] || dvc repro normalize
	python -m benchmarks

lint: $(VENV)/.test ## ruff, codespell and mypy
	ruff check .
	ruff format --check .
	codespell
	mypy

fmt: $(VENV)/.test ## format, and mend what ruff can
	ruff check --fix .
	ruff format .

cluster: $(VENV)/.cluster ## what the machines of a cluster need; see docs/cluster.md

up: $(VENV)/.run ## start the Prefect server and the Ray head
	mnist-pipe up

down: $(VENV)/.run ## stop what `up` started
	mnist-pipe down

clean: ## remove what is generated; the environment and the registry stay
	rm -rf data models reports/plots reports/predictions reports/index.html

# PyPI's torch for Linux brings CUDA, 2.8 GB. TORCH=cpu takes the build without it from PyTorch's own index, TORCH=cuda
# does not, and auto does where there is no NVIDIA device, on Linux or on Windows below WSL2.
ifeq ($(filter cpu cuda auto,$(TORCH)),)
$(error TORCH must be cpu, cuda or auto, but got $(TORCH))
endif
ifneq ($(and $(filter Linux,$(shell uname -s)),$(filter cpu $(if $(wildcard /dev/nvidiactl /usr/lib/wsl/lib/libcuda.so.1),,auto),$(TORCH))),)
cpu_build = $(VENV)/bin/python -m pip install -q --no-deps --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
	-c requirements.lock $(1) || echo "make: PyTorch's own index did not answer; the build with CUDA follows" >&2
endif

# The lock is a constraint file: pip checks it against pyproject.toml, and a CUDA build of torch may bring its own
# libraries. Without build isolation, setuptools too is the locked one.
$(VENV)/.run: pyproject.toml requirements.lock
	@test -x $(VENV)/bin/python || { python="$(PYTHON)"; "$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
		"$$python" -m venv $(VENV); } || { echo "make: Python must be 3.11 or newer, with venv, but got $${python:-none}; run: apt-get install python3-venv (Debian 12), brew install python@3.13 (macOS) or uv python install 3.13, or set PYTHON" >&2; exit 3; }
	$(VENV)/bin/python -m pip install -q -c requirements.lock setuptools
	$(call cpu_build,torch)
	$(VENV)/bin/python -m pip install -q -c requirements.lock --no-build-isolation -e '.[serve,dashboards]'
	@[ ! -d .dvc ] || git rev-parse --git-dir >/dev/null 2>&1 || for project in . studies; do \
		$(VENV)/bin/dvc --cd $$project config --local core.no_scm true; done
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(call cpu_build,torchvision)
	$(VENV)/bin/python -m pip install -q -c requirements.lock --no-build-isolation -e '.[test,export,serve,dashboards]'
	@touch $@

$(VENV)/.cluster: $(VENV)/.run
	$(VENV)/bin/python -m pip install -q -c requirements.lock --no-build-isolation -e '.[cluster]'
	@touch $@
