# Each target sets up what it needs: a .venv with torch, the package (editable, extension compiled) and its test tools.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
TORCH ?= torch==2.13.0
TRITON ?= triton==3.9.0
SOURCES := setup.py pyproject.toml $(wildcard csrc/*/*)

.PHONY: demo demo-force test bench lint gate gpu gpu-status readme clean

demo: $(VENV)/installed
	$(RUN) examples/simclr_digits.py

demo-force: $(VENV)/installed
	$(RUN) examples/force_generator.py

test: $(VENV)/installed
	$(RUN) -m pytest tests

bench: $(VENV)/installed
	$(RUN) -m bench --quick

lint: $(VENV)/installed
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

gate: $(VENV)/installed
	$(RUN) -m bench.compile_gate
	$(RUN) -m bench.compile_gate_cuda

readme: $(VENV)/installed
	$(RUN) -m bench.fastest
	$(RUN) -m bench.readme

# On a machine with an NVIDIA GPU; uses the Python and torch found there and installs nothing. PART=verify or PART=sweep, QUICK=1,
# OUT=folder of the results, an earlier run's among them.
gpu:
	$(PYTHON) -m bench.gpu $(if $(PART),--part $(PART)) $(if $(QUICK),--quick) $(if $(OUT),--out "$(OUT)")

gpu-status:
	@$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) -m bench.gpu_status

$(VENV)/tools: Makefile
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q "$(TORCH)" setuptools wheel ninja numpy
	$(RUN) -m pip install -q "$(TRITON)" pytest matplotlib scikit-learn ruff
	touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(RUN) -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info fused_contrastive/*.so
