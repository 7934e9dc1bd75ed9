# svcdns: the few words to remember. `make` alone lists them.

SHELL := /bin/sh
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
# Where a test that cannot run on this machine leaves its name and reason.
export SKIPPED_TESTS := $(CURDIR)/target/skipped-tests

.PHONY: help run build test fresh bench micro check flood properties fuzz deny clean

help: ## list these words
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: build ## build in release mode and run the demo
	target/release/svcdns demo

build: ## install what the build needs, build in release mode
	@tests/setup.sh build
	cargo build --release --locked

check: ## format check and lints, warnings denied
	@tests/setup.sh build
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

test: check ## install what the tests need, check, run all tests
	@tests/setup.sh test
	@rm -rf $(SKIPPED_TESTS) && mkdir -p $(SKIPPED_TESTS)
	cargo test --locked
	cargo test --locked --bench registry -- --short
	cargo test --locked --bench forward -- --short
	cargo test --locked --bench peers -- --short
	cargo test --locked --bench storm -- --short
	cargo test --locked --bench micro -- --short
	@tests/skipped.sh $(SKIPPED_TESTS)

fresh: ## run make test on a new, minimal Debian that is removed afterwards (needs root and debootstrap)
	tests/fresh-machine.sh make test

bench: ## measure answers beside other servers (docs/benchmarks.md); a large registry, forwarding, a storm, each step (docs/performance.md)
	@tests/setup.sh bench
	cargo bench --locked --bench peers
	cargo bench --locked --bench registry
	cargo bench --locked --bench forward
	cargo bench --locked --bench storm
	cargo bench --locked --bench micro

micro: ## measure and count the single steps, and how they grow with what is known: part of make bench
	@tests/setup.sh test
	cargo bench --locked --bench micro

flood: ## put a million keys under one service of a release build, and show what that does to others
	@tests/setup.sh test
	FLOOD=1000000 cargo test --locked --release --test bad_input a_flood -- --nocapture

# About 3,000,000 questions.
properties: export PROPTEST_CASES ?= 25000
properties: ## hold the fast answers equal to the full ones for millions of questions
	@tests/setup.sh build
	cargo test --locked --release --test properties -- --nocapture

# Seconds for each target.
FUZZ_SECONDS ?= 60
fuzz: ## look for octets that break a promise, guided by coverage (needs cargo-fuzz)
	@tests/setup.sh fuzz
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is not installed: cargo install --locked cargo-fuzz" >&2; exit 1; }
	tests/fuzz/fuzz.sh run $(FUZZ_SECONDS)

deny: ## check licences, duplicates and advisories of the dependencies (needs cargo-deny)
	@cargo deny --version >/dev/null 2>&1 || { echo "cargo-deny is not installed: cargo install --locked cargo-deny" >&2; exit 1; }
	cargo deny check

clean: ## remove what was built
	cargo clean
	rm -rf tests/goframe/bin
