# Every target is explained by `make help`. The scripts do the work and can be run by themselves.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
ITERATIONS ?= 10
# nextest (if it is installed) or cargo
TEST_RUNNER ?= $(shell command -v cargo-nextest >/dev/null && echo nextest || echo cargo)
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET_DIR)/release/lazycopy
HOST = $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
SCRIPTS := .ci/run $(wildcard scripts/*.sh)

.PHONY: help
help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf 'make %-12s %s\n' "$$name" "$$text"; done

.PHONY: setup
setup: ## install what building, running and testing need (Debian 12), or say what to install
	@scripts/setup.sh --test

.PHONY: build
build: ## build the program: target/release/lazycopy
	@scripts/setup.sh
	$(CARGO) build --release --locked

.PHONY: demo
demo: ## show the main job on a sample tree in about a minute; leaves nothing behind
	@scripts/demo.sh

.PHONY: test
test: ## run all tests; they mount for real and use real servers (REQUIRE_FUSE=1, REQUIRE_TOOLS=1: a skip is a failure)
	@scripts/setup.sh --test
ifeq ($(TEST_RUNNER),nextest)
	$(CARGO) test --doc --locked
	$(CARGO) nextest run --locked --no-fail-fast
else
	$(CARGO) test --locked --no-fail-fast
endif

.PHONY: test-short
test-short: ## run the unit tests only: no mount, no servers
	@scripts/setup.sh
	$(CARGO) test --lib --locked

.PHONY: lint
lint: ## check format, clippy, scripts and docs; every warning is an error
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	for script in $(SCRIPTS); do bash -n "$$script"; done
	for script in $(wildcard scripts/*.py); do python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$$script"; done
	if command -v shellcheck >/dev/null; then shellcheck -x $(SCRIPTS); else echo "lint: no shellcheck here, syntax checked only"; fi
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked

.PHONY: fmt
fmt: ## format the code
	$(CARGO) fmt

.PHONY: bench
bench: ## measure beside curl, aria2, rclone, rsync, s3fs, sshfs (an hour; BENCH_ARGS="--quick" some minutes)
	@scripts/setup.sh --bench
	@scripts/bench.sh $(BENCH_ARGS)

.PHONY: stress-test
stress-test: ## run the stress tests on real mounts ITERATIONS=10 times; SEED=n repeats one
	@scripts/setup.sh --test
	REQUIRE_FUSE=1 ITERATIONS=$(ITERATIONS) $(CARGO) test --release --locked --test mount -- stress:: crash:: --nocapture

# Both detectors have a target directory of their own, so that they and the ordinary build do not throw each other's work away.
.PHONY: test-race
test-race: ## check core/ with loom (all interleavings) and the library with AddressSanitizer
	@scripts/setup.sh
	LOOM_MAX_PREEMPTIONS=$${LOOM_MAX_PREEMPTIONS:-3} RUSTFLAGS="--cfg lazycopy_loom" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=0 \
	  $(CARGO) test --lib --release --locked --target-dir $(TARGET_DIR)/loom -- core
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address -Cunsafe-allow-abi-mismatch=sanitizer" \
	  $(CARGO) test --lib --locked --target $(HOST) --target-dir $(TARGET_DIR)/asan

.PHONY: ci
ci: lint test test-race ## everything that must pass: lint, test, test-race

.PHONY: docs
docs: ## build the documentation of the code: target/doc/lazycopy/index.html
	$(CARGO) doc --no-deps --locked --document-private-items

.PHONY: install
install: ## install the program into DESTDIR/PREFIX/bin (PREFIX=/usr/local)
	@test -x $(BINARY) || $(MAKE) build
	install -D -m 0755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/lazycopy

.PHONY: clean
clean: ## remove everything that was built
	$(CARGO) clean
