# One environment for everything; torch comes first and pinned, so that no CUDA build is pulled in on a CPU machine.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo wheel docs test lint types unit api test-networks test-slow test-fuzz test-faults test-native test-cuda zoo clean

$(STAMP): pyproject.toml fxptq/_version.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/fxptq quantize --recipe swinir_x4 --w 3 --a 3 --out out/swinir_x4_w3a3.safetensors

# dist/fxptq-*.whl with compiled kernels, for each kind of processor of this architecture; needs a C++ compiler.
wheel: $(STAMP)
	rm -rf build/wheel
	FXPTQ_WHEEL_KERNELS=1 $(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow and not cuda and not zoo and not fuzz and not faults and not networks"

# 99 small networks, one for each construct, through everything: a minute or two on two cores.
test-networks: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/networks

# docs/api.md, docs/passes.md and docs/recipes.md, from the code.
api: $(STAMP)
	$(BIN)/python -m docs.make_api
	$(BIN)/python -m docs.make_settings

# The docs as a site, out/docs/index.html; a link that leads nowhere is an error. The environment is its own, without torch.
DOCS ?= .venv-docs

$(DOCS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet "mkdocs-material>=9.5,<10"
	touch $@

docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	@echo out/docs/index.html

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow

# Files that were tampered with: FXPTQ_FUZZ cases of each kind; make test-fuzz FXPTQ_FUZZ=300 is quick.
FXPTQ_FUZZ ?= 10000

test-fuzz: $(STAMP)
	OMP_NUM_THREADS=1 FXPTQ_FUZZ=$(FXPTQ_FUZZ) $(BIN)/pytest -n 2 -m fuzz

# Processes that are killed, disks that are full, folders that cannot be written: FXPTQ_KILLS moments of each command.
FXPTQ_KILLS ?= 100

test-faults: $(STAMP)
	OMP_NUM_THREADS=1 FXPTQ_KILLS=$(FXPTQ_KILLS) $(BIN)/pytest -n 2 -m faults

# The kernels without torch, on every instruction set that runs here; ARM needs g++-aarch64-linux-gnu and qemu-user elsewhere.
test-native: $(STAMP)
	$(BIN)/pytest -rs tests/native

# On a machine with an NVIDIA GPU, whose PyTorch TORCH names: make test-cuda TORCH=torch==2.13.0+cu130
test-cuda: $(STAMP)
	$(BIN)/pytest -m cuda -rs

# Networks of other people, in an environment of their own; what is done is kept and not done again.
ZOO         ?= .venv-zoo
ZOO_RESULTS ?= out/zoo

$(ZOO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/pip install --quiet "$(TORCH)"
	$(ZOO)/bin/pip install --quiet "$(TORCH)" -e ".[zoo]"
	touch $@

zoo: $(ZOO)/.installed
	$(ZOO)/bin/python -m benchmarks.zoo --results $(ZOO_RESULTS)

clean:
	rm -rf $(VENV) $(ZOO) $(DOCS) out build dist *.egg-info
