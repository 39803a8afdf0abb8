# Every target works on a clean clone: what it needs is installed first, pinned, into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
WORKSPACE ?=
SERVICES ?=
STAMP := $(VENV)/.installed

.PHONY: help install services demo demo-stream test test-slow lint bench screenshots clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Install everything, pinned, into .venv

$(STAMP): requirements.lock setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^uv==' requirements.lock)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

services: $(STAMP) ## Kafka, Flink, Bigtable emulator, cbt and Prism into .services/; SERVICES="kafka flink" for some
	$(BIN)/beamrec services install $(SERVICES)

demo: $(STAMP) ## The whole path on simulated data; DATA=PATH for MovieLens or Globo; WORKSPACE=DIR
	$(BIN)/beamrec demo $(if $(DATA),--data "$(DATA)") $(if $(WORKSPACE),--workspace "$(WORKSPACE)")

demo-stream: $(STAMP) ## The stream at work, without Java and servers; WORKSPACE=DIR
	$(BIN)/beamrec demo --stream $(if $(WORKSPACE),--workspace "$(WORKSPACE)")

test: $(STAMP) ## The test suite; BEAMREC_DATA=DIR adds the tests on real data
	$(BIN)/python -m pytest tests -n 2 --dist loadfile

test-slow: $(STAMP) ## What 'make test' skips for its length: a job on Flink whose store is away, slow or new; fuzzing of the API
	$(BIN)/beamrec services install flink
	$(BIN)/python -m pytest tests/e2e/test_stream_store_away.py tests/serving/api/test_fuzz.py -m slow

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP) ## Benchmarks of batch, lists, collector and stream, as JSON lines; freshness for a minute
	$(BIN)/beamrec bench affinity --json
	$(BIN)/beamrec bench incremental --json
	$(BIN)/beamrec bench recommend --json
	$(BIN)/beamrec bench collect --json
	$(BIN)/beamrec services install kafka flink
	$(BIN)/beamrec bench stream --events 2000000 --spark-events 500000 --rowwise-events 50000 --json
	$(BIN)/beamrec bench freshness --runner flink --log kafka --seconds 60 --json

screenshots: $(STAMP) ## Screenshots of the page into docs/, by a headless Chromium
	$(BIN)/python tests/e2e/page_shots.py docs $(if $(WORKSPACE),--workspace "$(WORKSPACE)")

clean: ## Remove what was installed and built (workspaces stay)
	rm -rf $(VENV) .bench build *.egg-info
