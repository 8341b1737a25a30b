# make demo       install into .venv, train a small BERT on the text that Python carries, report
# make demo-gpt   the same for a small GPT
# make test       the fast tests;  make test-all: every test;  ARGS goes to pytest
# make test-hf    the comparisons with PyTorch and transformers, which it installs first
# make lint       ruff
# make lock       resolve requirements.lock and requirements-hf.lock anew (needs uv)
# make clean      remove .venv and caches; runs/ stays
#
# PYTHON names the interpreter that .venv is made with: make test PYTHON=python3.11

BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
UV ?= uv
HF_STAMP := .venv/installed-hf
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# ensurepip: Debian's python3 comes without it, and venv needs it.
USABLE := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
# A python3.12 on the path may still fail to start (pyenv's shims do), so each is tried.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
    $$p -c '$(USABLE)' >/dev/null 2>&1 && { echo $$p; break; }; done)

.PHONY: demo demo-gpt test test-all test-hf lint lock clean install install-hf

demo: $(STAMP)
	$(BIN)/bertgpt train --config configs/demo.py --workdir runs/demo

demo-gpt: $(STAMP)
	$(BIN)/bertgpt train --config configs/demo_gpt.py --workdir runs/demo_gpt

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not hf" $(ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Where PyTorch is missing these tests would be skipped, so its import comes first.
test-hf: $(HF_STAMP)
	$(BIN)/python -c "import torch, transformers"
	$(BIN)/python -m pytest -n 2 --dist loadfile -m hf $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

install: $(STAMP)

install-hf: $(HF_STAMP)

# The stamp comes last: an installation that was cut short is made again from nothing.
$(STAMP): requirements.lock setup.cfg pyproject.toml
	@$(or $(PYTHON),false) -c '$(USABLE)' || { \
	  echo "bertgpt needs Python 3.11 or newer with venv (Debian, Ubuntu: apt install python3-venv)." >&2; \
	  echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "Installing the locked dependencies into .venv, once; this takes a minute or two ..."
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# PyTorch comes last, so that its index is asked for nothing else. Where that cannot be reached, a
# wheel that pip is configured to find will do.
$(HF_STAMP): $(STAMP) requirements-hf.lock requirements-torch.lock
	@echo "Installing PyTorch and transformers into .venv, once ..."
	@$(PIP) install --require-hashes --requirement requirements-hf.lock
	@$(PIP) install --require-hashes --extra-index-url $(TORCH_INDEX) --retries 2 \
	  --requirement requirements-torch.lock
	@touch $@

# One lock for every platform: resolved for the oldest Python, with markers for the newer.
COMPILE := pip compile --universal --generate-hashes --python-version 3.11 --no-config \
  --custom-compile-command "make lock"

# requirements-hf.lock is what `hf` needs besides requirements.lock, without PyTorch and its CUDA.
lock:
	$(UV) $(COMPILE) --upgrade --extra dev --output-file requirements.lock --quiet setup.cfg
	$(UV) $(COMPILE) --constraints requirements.lock --extra hf setup.cfg >requirements-hf.all
	awk '/^[a-z]/ {split($$1, name, "=="); skip = name[1] in locked || \
	       name[1] ~ /^(torch|triton|cuda-.*|nvidia-.*)$$/} \
	     FNR == NR {locked[name[1]]; next} !skip' \
	  requirements.lock requirements-hf.all >requirements-hf.lock
	rm requirements-hf.all

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
