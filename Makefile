# Everything below sets itself up in .venv; nothing else on the machine is touched.
PYTHON  ?= python3
CONFIG  ?= experiments/label_smoothing/config.py
WORKDIR ?=
TORCH   ?=
BIN     := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

comma   := ,

.PHONY: run test smoke lint bench chaos lock docs clean

run: .venv/.runtime  ## train, predict, evaluate, report; prints where the report is
	$(BIN)/python -m sc_jax.run --config=$(CONFIG) $(if $(WORKDIR),--workdir=$(WORKDIR))

test: .venv/.test lint  ## the whole suite; with TORCH=<version> also metrics of PyTorch tensors and parity with timm
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

smoke: .venv/.test  ## the smoke run of every recipe, about a minute each at most
	$(BIN)/python -m pytest tests/integration/test_recipes.py --recipes=all --durations=0

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/.runtime .venv-peers/.done  ## benchmarks/results/*.json
	.venv-peers/bin/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.training --parts=study,members$(if $(TORCH),$(comma)networks)
	$(BIN)/python -m benchmarks.input
	$(BIN)/python -m benchmarks.evaluate
	$(BIN)/python -m benchmarks.sweep
	$(if $(TORCH),$(BIN)/python -m benchmarks.predict)
	$(BIN)/python -m benchmarks.logit_statistics
	$(BIN)/python -m benchmarks.run_stages
	$(BIN)/python -m benchmarks.interval_coverage
	$(BIN)/python -m benchmarks.validity
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.cascades

chaos: .venv/.test  ## kills, damage, full disks and fuzzed readers at length, about an hour; benchmarks/results/{chaos,fuzz}.json
	$(BIN)/python -m tests.chaos.run

docs: .venv/.test  ## regenerates every number and picture of the docs from benchmarks/results and experiments/*/results
	$(BIN)/python docs/build.py

lock: .venv/bin/python  ## remakes constraints.txt from the ranges, for Python 3.11 and later
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --no-emit-index-url \
	    --custom-compile-command "make lock" --output-file constraints.txt pyproject.toml

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "sc_jax needs Python 3.11 or later; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 …" % v[:2])'
	$(PYTHON) -m venv .venv && .venv/bin/python -m pip --version > /dev/null || { rm -rf .venv; \
	    echo "could not make .venv with pip in it; on Debian: apt-get install python3-venv" >&2; exit 1; }

.venv/.runtime: .venv/bin/python pyproject.toml requirements.txt constraints.txt
	@echo "installing sc_jax into .venv (about a minute)"
	$(INSTALL) --editable .
	@touch $@

.venv/.test: .venv/.runtime
	@echo "installing the test tools into .venv"
	$(INSTALL) --editable ".[test]"
	-$(if $(TORCH),$(INSTALL) torch==$(TORCH) && $(INSTALL) --no-deps timm==1.0.31)
	@touch $@

.venv-peers/.done: .venv/.runtime benchmarks/peers/requirements.txt
	@echo "installing what the metrics are measured against into .venv-peers"
	test -x .venv-peers/bin/python || $(BIN)/python -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable . \
	    --requirement benchmarks/peers/requirements.txt
	@touch $@

clean:
	rm -rf .venv .venv-peers
