# Boxreel's commands. `make` alone lists them. Each brings the machine up to date first (setup), which
# costs nothing where that is done.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build services demo test chaos lint bench bench-smoke bench-store bench-cluster clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what the build needs: Debian packages, libtorch in .libtorch/
	@scripts/setup.sh

build: setup ## build the program: target/release/boxreel
	cargo build --release --locked --package boxreel

services: setup ## build the services for many machines: target/release/pre, infer, post
	cargo build --release --locked --package pre --package infer --package post

demo: build ## box every object in a sample clip, or in yours: make demo VIDEO=holiday.mp4
	@scripts/demo.sh

test: setup ## run all tests; what they need (MongoDB, Kubernetes' tools, a tus client, axe-core) is fetched into .tools/
	@scripts/fetch_mongod.sh
	@scripts/fetch_tus_client.sh
	@scripts/fetch_axe.sh
	@scripts/fetch_kube_tools.sh
	@scripts/check_deploy.sh
	cargo test --workspace --locked

chaos: setup ## the long run of the tests that kill processes: make chaos FAULTS=100 SEED=1 (some 10 minutes)
	@scripts/fetch_mongod.sh
	cargo test --workspace --locked --no-run
	BOXREEL_TEST_FAULTS=$(or $(FAULTS),100) BOXREEL_TEST_SEED=$(or $(SEED),1) \
	  cargo test --workspace --locked --test integration -- chaos --nocapture

lint: setup ## formatting, clippy, and the licences and origins of all dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	scripts/deny.sh

bench: build ## time Boxreel, its stages, and what one would use instead: make bench VIDEO=… ROUNDS=3 PARTS=runs
	cargo build --release --locked --package boxreel --example bench_stages
	cargo build --release --locked --package infer --example bare
	@scripts/bench.sh

bench-smoke: setup ## fail where a stage, or all of it, has become much slower than the network alone
	cargo build --workspace --examples --locked
	target/debug/examples/bench_stages smoke

bench-store: setup ## time claims on both stores, with up to 10^6 segments waiting (some 15 minutes)
	@scripts/fetch_mongod.sh
	cargo run --release --locked --package common --example bench_store

bench-cluster: services ## time one video on 1, 2 and 4 workers, as real services on a real database
	@scripts/fetch_mongod.sh
	cargo run --release --locked --package testbed --example bench_cluster

clean: ## remove what was built; libtorch and the tools stay
	cargo clean
