# face-id: `make help` lists what can be made.
SHELL := /bin/bash
.DEFAULT_GOAL := help

export FACE_ID_CACHE_DIR ?= $(CURDIR)/.cache
# An operator's own copy of weights and pictures beside the checkout, where there is one.
ifneq ($(wildcard ../shared/models),)
export FACE_ID_ASSETS_DIR ?= $(abspath ../shared)
endif

FACE_ID := target/debug/face-id
LFW ?= $(FACE_ID_ASSETS_DIR)/data/lfw

.PHONY: help setup build demo test check serve eval

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing: a C linker, the ONNX Runtime library
	@scripts/setup.sh

build: setup ## Build the command
	cargo build --locked --package cli

demo: build ## Enroll people, identify other photographs of them, in under a minute (PHOTOS=DIR takes your own)
	$(FACE_ID) demo $(if $(PHOTOS),--photos "$(PHOTOS)")

test: setup ## Run all tests
	cargo test --workspace --locked

check: setup ## Formatting, lints, documentation, dependency directions, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
	scripts/check-dependencies.sh
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check bans licenses sources; \
	else echo "cargo-deny is not installed: licences and sources were not checked"; fi
	@echo "largest source files:"; git ls-files '*.rs' | xargs wc -l | grep -v ' total$$' | sort -rn | head -5

serve: build ## Run the server on 127.0.0.1:8080 with its data in ./data
	$(FACE_ID) serve

eval: build ## Measure accuracy and speed on LFW (LFW=DIR with pairs.txt and lfw-deepfunneled)
	$(FACE_ID) eval lfw --images "$(LFW)/lfw-deepfunneled" --pairs "$(LFW)/pairs.txt"
