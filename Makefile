# `make` alone lists the targets.

SHELL := /bin/sh
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
# A test that cannot run on this machine writes its name and the reason here.
export SKIPPED_TESTS := $(CURDIR)/target/skipped-tests

.PHONY: help run build test registries monitoring fresh systemd bridge bench micro check flood properties fuzz deny clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: build ## build in release mode and run the demo
	target/release/svcdns demo

build: ## install what the build needs, and build in release mode
	@tests/setup.sh build
	cargo build --release --locked

check: ## check the format, and lint code and its documentation with warnings denied
	@tests/setup.sh build
	cargo fmt --check
	cargo clippy --locked --all-targets --test systemd_machine --test zookeeper_lists \
		--test zookeeper_outages -- -D warnings
	cargo clippy --locked --lib --bins --tests --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib

test: check ## install what the tests need, check, run all tests
	@tests/setup.sh test
	@rm -rf $(SKIPPED_TESTS) && mkdir -p $(SKIPPED_TESTS)
	tests/all.sh
	cargo test --locked --bench registry --bench forward --bench peers --bench storm \
		--bench bridge --bench restarts --bench micro -- --short
	cargo test --locked --bench storm -- --short --scrape
	@tests/skipped.sh $(SKIPPED_TESTS)

# Consul takes 4 minutes to build, once. Maven fetches releases of ZooKeeper, once.
registries: export BUILD_CONSUL := 1
registries: ## run all tests against real registries, and print the times (Consul needs Go, ZooKeeper 3.9 Maven)
	@tests/setup.sh test
	@rm -rf $(SKIPPED_TESTS) && mkdir -p $(SKIPPED_TESTS)
	cargo test --locked --test etcd_registry --test file_registry \
		--test consul_registry --test consul_bad_input --test other_servers \
		--test zookeeper_registry --test zookeeper_lists --test zookeeper_outages
	cargo test --locked --test battery -- --ignored --nocapture
	@tests/skipped.sh $(SKIPPED_TESTS)

fresh: ## run make test on a new minimal Debian (needs root and debootstrap)
	tests/fresh-machine.sh make test

monitoring: ## check metrics, alert rules and dashboard with a real Prometheus
	@tests/setup.sh monitoring
	cargo test --locked --test metrics -- --include-ignored

# The release is DEBIAN_RELEASE, by default that of this machine.
systemd: ## boot a Debian with systemd-resolved, and install, kill and uninstall svcdns there
	@tests/setup.sh systemd
	cargo test --locked --test systemd_machine -- --nocapture

bridge: ## run all tests of the port bridge, the long ones too, and print their figures
	@tests/setup.sh test
	@rm -rf $(SKIPPED_TESTS) && mkdir -p $(SKIPPED_TESTS)
	cargo test --locked --test bridge --test bridge_bad_input --test bridge_clients \
		--test bridge_commands --test bridge_connections --test bridge_goframe \
		--test bridge_load --test bridge_pitfalls --test bridge_redirect \
		-- --include-ignored --nocapture --test-threads=1
	@tests/skipped.sh $(SKIPPED_TESTS)

bench: ## measure the figures of docs/benchmarks.md and docs/performance.md
	@tests/setup.sh bench
	cargo bench --locked --bench peers
	cargo bench --locked --bench registry
	cargo bench --locked --bench forward
	cargo bench --locked --bench storm
	cargo bench --locked --bench storm -- --scrape
	cargo bench --locked --bench bridge
	cargo bench --locked --bench restarts
	cargo bench --locked --bench micro

micro: ## measure single steps, and how they grow with the registry: part of make bench
	@tests/setup.sh test
	cargo bench --locked --bench micro

flood: ## put a million keys under one service, and show the effect on others
	@tests/setup.sh test
	FLOOD=1000000 cargo test --locked --release --test bad_input a_flood -- --nocapture

# About 3,000,000 queries.
properties: export PROPTEST_CASES ?= 25000
properties: ## compare millions of precompiled answers with computed ones
	@tests/setup.sh build
	cargo test --locked --release --test properties -- --nocapture

# Seconds per target.
FUZZ_SECONDS ?= 60
fuzz: ## run every fuzz target for FUZZ_SECONDS (needs cargo-fuzz)
	@tests/setup.sh fuzz
	@cargo fuzz --version >/dev/null 2>&1 || \
		{ echo "cargo-fuzz is not installed: cargo install --locked cargo-fuzz" >&2; exit 1; }
	tests/fuzz/fuzz.sh run $(FUZZ_SECONDS)

deny: ## check licences and advisories of the dependencies (needs cargo-deny)
	@cargo deny --version >/dev/null 2>&1 || \
		{ echo "cargo-deny is not installed: cargo install --locked cargo-deny" >&2; exit 1; }
	cargo deny check

clean: ## remove what was built
	cargo clean
	rm -rf tests/goframe/bin
