# `make quickstart` and `make test` first make the environment in .venv, once. Variables:
#   PYTHON=python3.12    interpreter of the environment (3.11 or newer)
#   ACCEL=cpu|cuda|tpu   which jax to install; default: cuda where nvidia-smi finds a GPU, else cpu
#   ARGS="..."           options appended to the command of the target
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
RUNS ?= runs
LEVEL ?= O0
ifndef ACCEL
  ACCEL := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
endif
ifeq ($(filter cpu cuda tpu,$(ACCEL)),)
  $(error ACCEL=$(ACCEL) is not one of cpu, cuda, tpu)
endif
EXTRA := import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]])
STAMP := $(VENV)/.installed-$(ACCEL)
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
PYTEST := JAX_PLATFORMS=cpu $(PY) -m pytest
AOT_PY := JAX_PLATFORMS=cpu .venv-aot/bin/python
AOT := $(AOT_PY) -m bljust_jax.aot --rows "$(ROWS)" --level "$(LEVEL)"
.PHONY: help setup quickstart first-hour test mutants lint nightly gpu aot aot-smoke aot-cuda aot-kernels peers faults compare-smoke bench bench-gpu clean docs
help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18
setup: $(STAMP) ## make the environment in .venv and nothing else
	@[ "$(origin PYTHON)" = file ] || [ "$$($(PYTHON) -c '$(VERSION)')" = "$$($(PY) -c '$(VERSION)')" ] \
	  || { echo "$(VENV) was made with another Python than $(PYTHON): run 'make clean', or choose another VENV=" >&2; exit 1; }
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is missing or older than 3.11: choose a newer one, make PYTHON=python3.12" >&2; exit 1; }
	@[ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock into $(VENV) for $(ACCEL), once" >&2
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock $$($(PY) -c '$(EXTRA)' $(ACCEL))
	@touch $@
quickstart: setup ## synthesise a small speech corpus and train on it: a few minutes on two cores
	$(PY) -m bljust_jax.main --config=configs/quickstart.py --workdir=$(RUNS)/quickstart $(ARGS)
first-hour: setup ## run docs/first_hour.md on SPEECH, a folder with train.jsonl and dev.jsonl: 20 minutes
	$(PY) -m tests.docs.first_hour $(SPEECH) $(ARGS)
test: setup ## run the tests, without slow ones and those that need a GPU
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not gpu" $(ARGS)
mutants: setup ## change the code in 209 places, one by one; each must make a test fail: 20 minutes (ARGS="bilevel")
	JAX_PLATFORMS=cpu $(PY) -m tests.mutants.run $(ARGS)
lint: setup ## check the sources and their format with ruff
	$(PY) -m ruff check bljust_jax configs tests
	$(PY) -m ruff format --check bljust_jax configs tests
docs: setup ## build docs/ and the API reference as a site in build/docs; warnings are errors
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock $$($(PY) -c '$(EXTRA)' docs)
	JAX_PLATFORMS=cpu $(PY) -m sphinx -W --keep-going -q -c docs . build/docs
nightly: ## slow tests, another Python, quickstart with three seeds, real digits, more of aot (PYTHON2, SPEECH)
	.ci/nightly
nightly-%: # slow, miniatures, newest, oldest, installed, bare, rivals, beam, quickstart, digits or aot alone
	.ci/nightly $*
gpu: ## run the tests that need a GPU, with the jax of this machine: a minute and a half
	JAX_PLATFORMS=cuda,cpu $(PYTHON) -m pytest -m gpu tests $(ARGS)
aot: aot-kernels aot-cuda ## compile kernels and steps for TPUs and H200s without one, half an hour (ROWS, LEVEL)
	$(AOT) --jobs 2 --out results
aot-smoke: aot-kernels ## compile the kernels and one step only
	$(AOT) --rows "librispeech.py:S joint"
aot-kernels: ## make the environment for aot and compile the kernels only
	$(MAKE) setup VENV=.venv-aot ACCEL=tpu
	$(AOT_PY) -m pytest -n 2 -m "not slow" tests/aot $(ARGS)
aot-cuda: aot-kernels ## add the compiler for NVIDIA GPUs, without NVIDIA's libraries, to that environment
	v=$$(.venv-aot/bin/python -c 'import jaxlib; print(jaxlib.__version__)'); \
	.venv-aot/bin/python -m pip install --quiet --no-deps jax-cuda13-plugin==$$v jax-cuda13-pjrt==$$v
peers: ## compare with torch and transformers in another environment (TRANSFORMERS=4.57.6)
	$(MAKE) setup VENV=.venv-peers ACCEL=cpu
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock $$($(PY) -c '$(EXTRA)' peers)
	[ -z "$(TRANSFORMERS)" ] || .venv-peers/bin/python -m pip install --quiet "transformers==$(TRANSFORMERS)"
	JAX_PLATFORMS=cpu .venv-peers/bin/python -m pytest -n 2 -m "not slow" tests/peers $(ARGS)
faults: setup ## inject faults: kills, lost hosts, bad files; print the figures of results/reliability.md
	$(PYTEST) -s tests/faults tests/parallel/test_cluster.py tests/checkpoint/test_manager.py $(ARGS)
compare-smoke: setup ## compare two methods on synthetic speech by bljust compare: a minute
	JAX_PLATFORMS=cpu $(PY) -m bljust_jax.compare --smoke --runs $(RUNS)/compare $(ARGS)
bench: setup ## measure CTC against optax and torch, the joint step against its parts, reading of audio
	$(PY) -m bljust_jax.bench ctc step input $(ARGS)
bench-gpu: ## measure this machine's GPU into results/bench, item by item; resumes; installs nothing: ten minutes
	XLA_PYTHON_CLIENT_MEM_FRACTION=0.6 $(PYTHON) -m bljust_jax.bench device --json results/bench $(ARGS)
clean: ## remove environments and caches; runs/ stays
	rm -rf .venv .venv-* .hypothesis .ruff_cache build docs/reference
	find bljust_jax configs tests -name __pycache__ -prune -exec rm -rf {} +
