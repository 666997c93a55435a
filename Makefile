# face-id: `make help` lists what can be made.
SHELL := /bin/bash
.DEFAULT_GOAL := help

export FACE_ID_CACHE_DIR ?= $(CURDIR)/.cache
# An operator's own copy of weights and pictures beside the checkout, where there is one.
ifneq ($(wildcard ../shared/models),)
export FACE_ID_ASSETS_DIR ?= $(abspath ../shared)
endif

FACE_ID := target/debug/face-id
SERVICES := target/debug/face-id-services --dir .cache/services
# What the tests need is in this build too, so that nothing is compiled twice; a release build has none of it.
FEATURES := --features shared/testing,shared/failpoints,worker/testing
# embedded: one process, nothing to install. services: PostgreSQL, RabbitMQ, S3, an api and a worker as processes.
BACKEND ?= embedded
LFW ?= $(FACE_ID_ASSETS_DIR)/data/lfw
# Photographs out of which `make bench` makes those of 12 megapixels, and what else to tell it (--quick, --parts, --document FILE).
FACES ?= $(FACE_ID_ASSETS_DIR)/data/faces
PHOTOS_12MP := $(FACE_ID_CACHE_DIR)/bench-photos
BENCH ?=
# Random requests to each operation in `make contract`.
CONTRACT_EXAMPLES ?= 60
# Events that a receiver is told of which answers as badly as it can.
CONTRACT_EVENTS ?= 100

# What to tell `face-id eval lfw --all` besides, and whose restricted licences you accept.
EVAL ?=
LICENCES ?=
# What to tell `face-id bench reprocess` besides (--limit, --detector NAME, ...).
REPROCESS ?=

.PHONY: help reprocess openapi setup-reference eval-all setup setup-heic setup-services setup-contract setup-dlib build demo test check serve eval calibrate services services-down faults contract bench build-heic test-heic

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing: a C compiler, cmake, nasm, the ONNX Runtime library
	@scripts/setup.sh

setup-services: setup ## Install PostgreSQL with pgvector and RabbitMQ for `make services` and the tests
	@scripts/setup-services.sh

build: setup ## Build the commands
	cargo build --locked --workspace $(FEATURES)

setup-heic: setup
	@pkg-config --atleast-version=1.15 libheif || scripts/setup-heic.sh

build-heic: setup-heic ## Build the commands so that they read HEIC, with libheif
	cargo build --locked --workspace $(FEATURES) --features cli/heic

test-heic: setup-heic ## Test the reading of HEIC
	cargo test --locked --package shared --package worker --lib --features worker/heic -- hei batch::tests decode

demo: build $(if $(filter services,$(BACKEND)),services) ## Enroll people, identify other photographs of them (PHOTOS=DIR takes your own, BACKEND=services runs it on them)
	@$(if $(filter services,$(BACKEND)),eval "$$($(SERVICES) env)" && )$(FACE_ID) demo $(if $(PHOTOS),--photos "$(PHOTOS)")

services: setup-services build ## Start PostgreSQL, RabbitMQ and an S3 store for yourself, and print the settings to use them
	@$(SERVICES) up

services-down: ## Stop them; their data stays in .cache/services
	@if [ -x $(firstword $(SERVICES)) ]; then $(SERVICES) down; else echo "nothing was built, so nothing runs"; fi

setup-contract: ## Install Schemathesis for the tests and for `make contract`
	@scripts/setup-contract.sh

setup-reference: ## Install what the tests compare detectors with
	@scripts/setup-reference.sh

setup-dlib: ## Install dlib, with which the tests compare what `face-id models import dlib` makes
	@scripts/setup-dlib.sh

test: setup-services setup-contract setup-reference setup-dlib ## Run all tests, those on real services too
	cargo test --workspace --locked

faults: setup-services ## Break everything in turn under load; a table, and what became of the jobs as JSON in the last line
	@rm -f target/tmp/faults.txt
	@FAULT_JOBS=110 cargo test --workspace --locked --test it faults; status=$$?; \
	cat target/tmp/faults.txt 2>/dev/null || echo '{"faults":0,"passed":false}'; exit $$status

contract: setup-services setup-contract ## Hold the HTTP and webhook contract against tools, at length; what came of it as JSON in the last line
	@rm -f $(addprefix target/tmp/,contract-embedded.json contract-services.json reach-embedded.json reach-services.json webhooks.json ssrf.json)
	@CONTRACT_EXAMPLES=$(CONTRACT_EXAMPLES) CONTRACT_EVENTS=$(CONTRACT_EVENTS) cargo test --workspace --locked --no-fail-fast -- the_api_does_what_its_document_says keys::reach webhooks; status=$$?; \
	python=$$(. scripts/packages.sh && find_python) && $$python scripts/contract/summary.py target/tmp $$status

check: setup ## Formatting, lints, documentation, dependency directions, Dockerfiles, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
	scripts/check-dependencies.sh
	scripts/lint-docker.sh
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check bans licenses sources; \
	else echo "cargo-deny is not installed: licences and sources were not checked"; fi
	@echo "largest source files:"; git ls-files '*.rs' | xargs wc -l | grep -v ' total$$' | sort -rn | head -5

openapi: build ## Write the HTTP API's OpenAPI document to docs/openapi.json
	$(FACE_ID) openapi > docs/openapi.json

serve: build ## Run the server on 127.0.0.1:8080 with its data in ./data
	$(FACE_ID) serve

bench: services ## Measure everything, in about 20 minutes; a report in .cache/bench, all ratios as JSON in the last line
	@scripts/setup-bench.sh
	@if [ -d "$(FACES)" ]; then scripts/bench/python.sh scripts/bench/make_photos.py $(PHOTOS_12MP) --samples "$(FACES)" --count 300; fi
	@eval "$$($(SERVICES) env)" && $(FACE_ID) bench all \
		$(if $(wildcard $(LFW)/lfw-deepfunneled),--small "$(LFW)/lfw-deepfunneled") \
		$(if $(wildcard $(FACES)),--photos $(PHOTOS_12MP)) $(BENCH)

reprocess: services ## Give LFW's pictures another recognizer, then another detector, while people are identified and servers are killed (LFW=DIR); figures as JSON in the last line
	@eval "$$($(SERVICES) env)" && $(FACE_ID) --accept-license scrfd-mobilefacenet bench reprocess \
		--images "$(LFW)/lfw-deepfunneled" $(REPROCESS)

eval-all: build ## Measure every pipeline whose weights are here on LFW, into docs/MODELS.md; it may be interrupted (LICENCES="NAME ..." accepts those, EVAL="--only NAME" takes one)
	$(FACE_ID) $(addprefix --accept-license ,$(LICENCES)) eval lfw --all --images "$(LFW)/lfw-deepfunneled" --pairs "$(LFW)/pairs.txt" \
		--plots docs --document docs/MODELS.md $(EVAL)

eval: build ## Measure accuracy and speed on LFW (LFW=DIR with pairs.txt and lfw-deepfunneled)
	$(FACE_ID) eval lfw --images "$(LFW)/lfw-deepfunneled" --pairs "$(LFW)/pairs.txt"

calibrate: build ## Look whether a calibration's bounds hold for held-out people, on 20 splits of LFW (LFW=DIR); stores nothing
	$(FACE_ID) calibrate --images "$(LFW)/lfw-deepfunneled" --measured-on LFW --check-splits 20
