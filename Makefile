# make demo       installs into .venv, trains a small BERT on text that comes with Python, reports
# make demo-gpt   the same for a small GPT
# make test       the fast tests;  make test-all: every test;  ARGS goes to pytest
# make test-hf    the fast comparisons with PyTorch and transformers, which it installs first
# make test-tpu   the programs that TPUs would run, compiled without one; installs the compiler
# make test-gpu   the same for NVIDIA GPUs; installs JAX for CUDA, 3 GB
# make test-gcs   the tests of buckets; installs gcsfs; ARGS='-m slow': runs that are killed
# make soak       kills, stops and damages small runs: MINUTES=20 SEED=1 PROCESSES=1
# make recovery   how long runs take to end after a fault, and to be back: REPETITIONS=5
# make bench-gpu  half an hour on a machine with a GPU: correctness, speed, bottlenecks
# make lint       ruff, the alignment of continuation lines, types
# make docs       docs/ as web pages, in docs/_build; warnings are errors
# make lock       resolves requirements.lock and the locks of the extras again (needs uv)
# make clean      removes .venv and caches; runs/ stays
#
# PYTHON names the interpreter of .venv: make test PYTHON=python3.11

BIN := .venv/bin
STAMP := .venv/installed
# Python compiles a module when it is first imported; compiling all takes a third of the installation.
PIP_INSTALL := $(BIN)/python -m pip -qq --disable-pip-version-check install --no-compile
UV ?= uv
HF_STAMP := .venv/installed-hf
PLAN_STAMP := .venv/installed-plan
GPU_STAMP := .venv/installed-gpu
GCS_STAMP := .venv/installed-gcs
DOCS_STAMP := .venv/installed-docs
LINT_STAMP := .venv/installed-lint
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# ensurepip: Debian's python3 comes without it, and venv needs it.
USABLE := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
# A python3.12 on the PATH may still fail to start (pyenv's shims do), so each is tried.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
    $$p -c '$(USABLE)' >/dev/null 2>&1 && { echo $$p; break; }; done)

# The files that use a marker: importing all files takes longer than many tests. If ARGS names files,
# only these are read.
files_with = $(if $(filter tests/%,$(ARGS)),,$$(grep -rlw --include='test_*.py' 'mark\.$(1)' tests))

.PHONY: demo demo-gpt soak recovery test test-all test-hf test-tpu test-gpu test-gcs bench-gpu lint docs lock clean install \
  install-hf install-plan install-gpu install-gcs install-docs install-lint

demo: $(STAMP)
	$(BIN)/bertgpt train --config configs/demo.py --workdir runs/demo

demo-gpt: $(STAMP)
	$(BIN)/bertgpt train --config configs/demo_gpt.py --workdir runs/demo_gpt

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not hf" $(ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

MINUTES ?= 20
SEED ?= 1
PROCESSES ?= 1
soak: $(STAMP)
	$(BIN)/python tests/helpers/soak.py --minutes $(MINUTES) --seed $(SEED) --processes $(PROCESSES)

REPETITIONS ?= 5
recovery: $(STAMP)
	$(BIN)/python tests/helpers/recovery.py --repetitions $(REPETITIONS)

# Without PyTorch these tests would be skipped, so the import of PyTorch comes first.
test-hf: $(HF_STAMP)
	$(BIN)/python -c "import torch, transformers"
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "hf and not slow" $(call files_with,hf) $(ARGS)

test-tpu: $(PLAN_STAMP)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 -m "libtpu and not slow" \
	  $(call files_with,libtpu) $(ARGS)

test-gpu: $(GPU_STAMP)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 -m "cuda and not slow" \
	  $(call files_with,cuda) $(ARGS)

test-gcs: $(GCS_STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow" tests/files tests/data/corpus/test_remote.py tests/test_buckets.py \
	  $(ARGS)

# Writes bench-gpu.json. make bench-gpu ARGS=--rehearse: small sizes, on the CPU.
bench-gpu: $(GPU_STAMP)
	$(BIN)/python -m benchmarks.device --out bench-gpu.json $(ARGS)

lint: $(LINT_STAMP)
	$(BIN)/ruff check .
	$(BIN)/pycodestyle bertgpt tests benchmarks configs docs
	$(BIN)/mypy

# A link to a missing page or heading is a warning.
docs: $(DOCS_STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

install: $(STAMP)

install-hf: $(HF_STAMP)

install-plan: $(PLAN_STAMP)

install-gpu: $(GPU_STAMP)

install-gcs: $(GCS_STAMP)

install-docs: $(DOCS_STAMP)

install-lint: $(LINT_STAMP)

# The stamp comes last, so that an interrupted installation is repeated from the start.
$(STAMP): requirements.lock setup.cfg setup.py pyproject.toml
	@$(or $(PYTHON),false) -c '$(USABLE)' || { \
	  echo "bertgpt needs Python 3.11 or newer with venv (Debian, Ubuntu: apt install python3-venv)." >&2; \
	  echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "Installing the locked dependencies into .venv, once; this takes a minute or two ..."
	@$(PYTHON) -m venv --clear .venv
	@$(PIP_INSTALL) --require-hashes --requirement requirements.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# PyTorch comes last, so that its index is used for nothing else. If the index cannot be reached,
# pip may find a wheel elsewhere, as it is configured.
$(HF_STAMP): $(STAMP) requirements-hdf5.lock requirements-hf.lock requirements-torch.lock
	@echo "Installing PyTorch and transformers into .venv, once ..."
	@$(PIP_INSTALL) --require-hashes --requirement requirements-hf.lock \
	  --requirement requirements-hdf5.lock
	@$(PIP_INSTALL) --require-hashes --extra-index-url $(TORCH_INDEX) --retries 2 \
	  --requirement requirements-torch.lock
	@touch $@

# Without a TPU, JAX_PLATFORMS=cpu keeps the rest of JAX from looking for one.
$(PLAN_STAMP): $(STAMP) requirements-plan.lock
	@echo "Installing the compiler for TPUs into .venv, once ..."
	@$(PIP_INSTALL) --require-hashes --requirement requirements-plan.lock
	@touch $@

$(GPU_STAMP): $(STAMP) requirements-cuda.lock
	@echo "Installing JAX for CUDA into .venv, once ..."
	@$(PIP_INSTALL) --require-hashes --requirement requirements-cuda.lock
	@touch $@

$(GCS_STAMP): $(STAMP) requirements-gcs.lock
	@echo "Installing gcsfs into .venv, once ..."
	@$(PIP_INSTALL) --require-hashes --requirement requirements-gcs.lock
	@touch $@

$(DOCS_STAMP): $(STAMP) requirements-docs.lock
	@echo "Installing Sphinx into .venv, once ..."
	@$(PIP_INSTALL) --require-hashes --requirement requirements-docs.lock
	@touch $@

$(LINT_STAMP): $(STAMP) requirements-lint.lock
	@echo "Installing the type checker into .venv, once ..."
	@$(PIP_INSTALL) --require-hashes --requirement requirements-lint.lock
	@touch $@

# One lock for all platforms, resolved for the oldest Python, with markers for newer ones. The locks
# of the extras hold only packages that are not in requirements.lock, without PyTorch, and without
# its CUDA: only the extra `cuda` asks for that.
COMPILE := pip compile --universal --generate-hashes --python-version 3.11 --no-config \
  --custom-compile-command "make lock"

lock:
	$(UV) $(COMPILE) --upgrade --extra dev --output-file requirements.lock --quiet setup.cfg
	$(UV) $(COMPILE) --upgrade --extra beam --extra dev --output-file requirements-beam.lock --quiet setup.cfg
	for extra in cuda docs gcs hdf5 hf lint plan; do \
	  $(UV) $(COMPILE) --constraints requirements.lock --extra $$extra setup.cfg >extra.all && \
	  awk -v extra=$$extra '/^[a-z]/ {split($$1, name, "=="); skip = name[1] in locked || \
	         extra != "cuda" && name[1] ~ /^(torch|triton|cuda-.*|nvidia-.*)$$/} \
	       FNR == NR {locked[name[1]]; next} !skip' \
	    requirements.lock extra.all >requirements-$$extra.lock || exit 1; done
	rm extra.all

clean:
	rm -rf .venv build dist docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
