# `make help` lists what there is. Everything made here lies in .venv and .cache.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
BIN := .venv/bin
# Stamps: a target runs again only when what it depends on changed.
SETUP := .venv/.setup-done
KAFKA := .cache/kafka/.fetched
TEST_TOOLS := .cache/.test-tools-found
CHART_TOOLS := .cache/tools/.found

.PHONY: help setup test lint format docs demo bench bench-full chaos chaos-memory security image kafka test-tools \
	chart-tools clean distclean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(SETUP) ## Create .venv from uv.lock (fetches uv if it is not on PATH)

$(SETUP): uv.lock pyproject.toml scripts/ensure-uv.sh
	uv="$$(PYTHON=$(PYTHON) sh scripts/ensure-uv.sh)" && "$$uv" sync --locked --all-groups
	@touch $@

# Most tests wait most of the time, for brokers and time limits; each worker has brokers of its own.
WORKERS ?= 3

test: setup test-tools chart-tools kafka lint ## Everything CI wants: linters, types, layers, and all tests with coverage
	$(BIN)/pytest --numprocesses=$(WORKERS) --dist=worksteal \
		--cov --cov-report=term-missing:skip-covered --cov-fail-under=95 --core-fail-under=100 $(ARGS)

lint: setup ## ruff, mypy, import-linter and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: setup ## Let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## Make docs/kafka-options.md anew
	$(BIN)/python -m scripts.kafka_options_page

demo: setup ## The service with brokers and devices of its own, nothing to install
	@$(BIN)/python -m server.demo

# Its figures are compared with a prototype's where there is one.
PROTOTYPE ?= $(firstword $(wildcard ../shared/prototypes/fast_lane.py ../../shared/prototypes/fast_lane.py))
BENCH = $(BIN)/python -m loadtest.bench $(if $(PROTOTYPE),--prototype $(PROTOTYPE))

bench: setup test-tools kafka ## Every target of the fast path, measured (10 minutes; ARGS="--html FILE")
	$(BENCH) $(ARGS)

bench-full: setup test-tools kafka ## The same with more rounds and large backlogs (about an hour)
	$(BENCH) --full $(ARGS)

chaos: setup test-tools kafka ## The long fault programme, 2 hours, resumable (ARGS="--seed 1 --filter Kafka --hours 1 --report"), memory, error codes, bad peers
	$(BIN)/python -m tests.faults $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m tests.faults.memory)
	$(if $(ARGS),,$(BIN)/pytest tests/faults/test_produce_errors.py tests/faults/test_bad_peers.py)

chaos-memory: setup test-tools kafka ## Memory with Kafka stopped, every combination for 10 minutes: ARGS="--seconds 60 --report"
	$(BIN)/python -m tests.faults.memory $(ARGS)

IMAGE ?= localhost/mqtt-kafka-forwarder:dev

image: setup test-tools kafka ## Build the image (IMAGE=NAME:TAG), with Docker or without, and run it with a read-only root
	sh scripts/image.sh $(IMAGE)
	MKF_TEST_IMAGE=.cache/image $(BIN)/pytest tests/integration/test_image.py $(ARGS)

# Files and requests are drawn anew each time; a failure names the seeds, to be given as ARGS="--security-seed 1 ...".
security: setup test-tools kafka ## The long form of tests/security: API, files, packets, secrets (under 30 minutes; ARGS="-k mqtt")
	MKF_SECURITY=long RUST_BACKTRACE=0 $(BIN)/pytest tests/security --numprocesses=2 --dist=worksteal --timeout=1200 $(ARGS)

test-tools: $(TEST_TOOLS) # Mosquitto, Java, Maven and Postgres, from apt where that is possible

$(TEST_TOOLS): scripts/test-tools.sh
	sh scripts/test-tools.sh
	@mkdir -p $(@D) && touch $@

chart-tools: $(CHART_TOOLS) # helm, built from its Go module, and promtool

$(CHART_TOOLS): scripts/chart-tools.sh
	sh scripts/chart-tools.sh
	@touch $@

kafka: $(KAFKA) # A real Kafka for the tests: its jars, through Maven

$(KAFKA): tests/brokers/kafka-pom.xml | $(TEST_TOOLS)
	rm -rf .cache/kafka
	mvn --batch-mode --quiet -f $< org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
		-DoutputDirectory="$(CURDIR)/.cache/kafka/libs"
	@touch $@

clean: ## Remove what tools left behind (not .venv and .cache)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* dist
	find . -name __pycache__ -not -path './.venv/*' -not -path './.cache/*' -prune -exec rm -rf {} +

distclean: clean ## Also remove .venv and .cache: as after git clone
	rm -rf .venv .cache
