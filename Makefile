# Boxreel's commands. `make` alone lists them. Each brings the machine up to date first (setup), which
# costs nothing where that is done.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build demo test lint bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what the build needs: Debian packages, libtorch in .libtorch/
	@scripts/setup.sh

build: setup ## build the program: target/release/boxreel
	cargo build --release --locked --package boxreel

demo: build ## box every object in a sample clip, or in yours: make demo VIDEO=holiday.mp4
	@scripts/demo.sh

test: setup ## run all tests; a MongoDB server for them is fetched into .tools/
	@scripts/fetch_mongod.sh
	cargo test --workspace --locked

lint: setup ## formatting, clippy, and the licences and origins of all dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	scripts/deny.sh

bench: build ## time the old way and Boxreel side by side: make bench VIDEO=… ROUNDS=3
	@scripts/bench.sh

clean: ## remove what was built; libtorch and the tools stay
	cargo clean
