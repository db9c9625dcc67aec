# Two commands: `make quickstart` and `make test`. Both make the environment first, once.
#
#   PYTHON=python3.12    the interpreter that the environment is made with (>= 3.11)
#   ACCEL=cpu|cuda|tpu   whose jax is installed; default: cuda where nvidia-smi finds a GPU, else cpu
#   ARGS="..."           added to the quickstart's or the tests' command line

SHELL := bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
RUNS ?= runs
SPEECH ?= ../shared/speech
ifndef ACCEL
  ACCEL := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
endif
ifeq ($(filter cpu cuda tpu,$(ACCEL)),)
  $(error ACCEL=$(ACCEL) is not one of cpu, cuda, tpu)
endif
EXTRA := $(wildcard requirements-$(ACCEL).txt)
STAMP := $(VENV)/.installed-$(ACCEL)
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
# The newest interpreter that runs here; `command -v` would also find shims that do not.
PYTHON2 ?= $(shell for p in python3.13 python3.12; do $$p -c '' 2>/dev/null && echo $$p && break; done)
VARIANTS := bljust ptft supervised weighted_sum alternating

.PHONY: help setup quickstart test lint nightly nightly-slow nightly-newest nightly-quickstart \
        nightly-digits nightly-aot aot aot-smoke aot-kernels aot-cuda peers faults bench bench-gpu clean

help:
	@echo "make quickstart   synthesise a small speech corpus and train on it, a few minutes on two cores"
	@echo "make test         the tests, without the slow ones and those that need a GPU"
	@echo "make setup        only make the environment in $(VENV)"
	@echo "make lint         ruff's checks and its formatting"
	@echo "make nightly      slow tests, a second interpreter, the quickstart with three seeds, all variants,"
	@echo "                  and what make aot leaves out, compiled as training compiles it"
	@echo "make bench        CTC against optax and torch, the joint step against its parts, reading audio"
	@echo "make bench-gpu    the same on this machine's GPU, into results/bench; installs nothing"
	@echo "make aot          compile kernels and the steps of shipped configs for TPUs and H200s, into"
	@echo "                  results/aot.md; needs neither, half an hour; make aot-smoke: kernels and one step"
	@echo "make faults       what is broken on purpose: kills, lost hosts, bad files; see results/reliability.md"
	@echo "make peers        the tests against torch and transformers, in an environment of their own"
	@echo "make clean        remove environments and caches; $(RUNS)/ stays"

setup: $(STAMP)
	@[ "$(origin PYTHON)" = file ] || [ "$$($(PYTHON) -c '$(VERSION)')" = "$$($(PY) -c '$(VERSION)')" ] \
	  || { echo "$(VENV) was made with another Python than $(PYTHON): run 'make clean', or name another VENV=" >&2; exit 1; }

$(STAMP): requirements.lock $(EXTRA)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is missing or older than 3.11: name a newer one, make PYTHON=python3.12" >&2; exit 1; }
	@[ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock into $(VENV) for $(ACCEL), once" >&2
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock $(addprefix -r ,$(EXTRA))
	@touch $@

quickstart: setup
	$(PY) -m bljust_jax.main --config=configs/quickstart.py --workdir=$(RUNS)/quickstart $(ARGS)

test: setup
	JAX_PLATFORMS=cpu $(PY) -m pytest -n 2 -m "not slow and not gpu" $(ARGS)

lint: setup
	$(PY) -m ruff check bljust_jax configs tests
	$(PY) -m ruff format --check bljust_jax configs tests

nightly: nightly-slow nightly-newest nightly-quickstart nightly-digits nightly-aot

nightly-slow: setup
	JAX_PLATFORMS=cpu $(PY) -m pytest -n 2 -m "slow and not gpu"

nightly-newest:
	@[ -n "$(PYTHON2)" ] || { echo "no python3.13 or python3.12 here: name one, make nightly PYTHON2=..." >&2; exit 1; }
	$(MAKE) test VENV=.venv-newest PYTHON=$(PYTHON2)

# `... | $(AT_MOST) KEY LIMIT` fails unless KEY of the JSON line that ends a run is at most LIMIT.
AT_MOST := tail -n 1 | tee /dev/stderr | $(PY) -c 'import json, sys; key, limit = sys.argv[1:]; \
  sys.exit(not json.load(sys.stdin)[key] <= float(limit))'

nightly-quickstart: setup
	set -eo pipefail; rm -rf $(RUNS)/nightly/quickstart-*; for seed in 0 1 2; do \
	  timeout 12m $(PY) -m bljust_jax.main --config=configs/quickstart.py --config.seed=$$seed \
	    --workdir=$(RUNS)/nightly/quickstart-$$seed | $(AT_MOST) test/wer 0.20; done

nightly-digits: setup
	@if [ ! -d $(SPEECH)/digits_ar ]; then echo "no real recordings in $(SPEECH): left out" >&2; exit 0; fi; \
	set -eo pipefail; rm -rf $(RUNS)/nightly/digits-*; for variant in $(VARIANTS); do \
	  limit=$$([ $$variant = bljust ] && echo 0.15 || echo inf); \
	  timeout 20m $(PY) -m bljust_jax.main --config=configs/manifest.py:digits,$$variant \
	    --config.data.train=$(SPEECH)/digits_ar/train.jsonl --config.data.dev=$(SPEECH)/digits_ar/dev.jsonl \
	    --workdir=$(RUNS)/nightly/digits-$$variant | $(AT_MOST) dev/wer $$limit; done

# ROWS="L joint,birq" compiles those steps alone; LEVEL= has the compiler do all that it does for
# training, which takes two or three times as long.
ROWS ?=
LEVEL ?= O0
AOT := JAX_PLATFORMS=cpu .venv-aot/bin/python -m bljust_jax.aot
aot: aot-kernels aot-cuda
	$(AOT) --level "$(LEVEL)" --jobs 2 --out results --rows "$(ROWS)"

aot-smoke: aot-kernels
	$(AOT) --level "$(LEVEL)" --rows "librispeech.py:S joint"

nightly-aot: aot-kernels aot-cuda
	$(AOT) --nightly --jobs 2 --out results --rows "$(ROWS)"

# The compiler for GPUs alone, of jaxlib's version, without NVIDIA's libraries.
aot-cuda: aot-kernels
	@v=$$(.venv-aot/bin/python -c 'import jaxlib; print(jaxlib.__version__)'); \
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  jax-cuda13-plugin==$$v jax-cuda13-pjrt==$$v

aot-kernels:
	$(MAKE) setup VENV=.venv-aot ACCEL=tpu
	JAX_PLATFORMS=cpu .venv-aot/bin/python -m pytest -n 2 -m "not slow" tests/aot $(ARGS)

# TRANSFORMERS=4.57.6 tries another version of it.
TRANSFORMERS ?=
peers: requirements-peers.txt
	$(MAKE) setup VENV=.venv-peers ACCEL=cpu
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@[ -z "$(TRANSFORMERS)" ] || .venv-peers/bin/python -m pip install --quiet "transformers==$(TRANSFORMERS)"
	JAX_PLATFORMS=cpu .venv-peers/bin/python -m pytest -n 2 -m "not slow" tests/peers $(ARGS)

# One after the other: several start processes of their own. -s shows the figures.
faults: setup
	JAX_PLATFORMS=cpu $(PY) -m pytest -s tests/faults tests/parallel/test_cluster.py tests/checkpoint/test_manager.py $(ARGS)

bench: setup
	$(PY) -m bljust_jax.bench ctc step input $(ARGS)

# Runs in the interpreter given and installs nothing; PYTHON=python3.12 chooses another.
bench-gpu:
	mkdir -p results/bench
	XLA_PYTHON_CLIENT_MEM_FRACTION=0.6 $(PYTHON) -m bljust_jax.bench ctc step --json results/bench $(ARGS)

clean:
	rm -rf .venv .venv-newest .venv-aot .venv-peers .pytest_xla_cache .hypothesis .ruff_cache
	find bljust_jax configs tests -name __pycache__ -prune -exec rm -rf {} +
