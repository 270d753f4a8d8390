# Every target sets up what it needs. ARGS goes to the program, as in: make demo ARGS="--for 10s"
ARGS ?=
FUZZ_SECONDS ?= 60
DIST = $(or $(CARGO_TARGET_DIR),target)/dist
# PostgreSQL refuses to run as root, so the servers run as another user and must be able to read these.
export UNSTALE_PG_BIN

.DEFAULT_GOAL := help
.PHONY: help demo check test lint docs dist bench bench-outbox bench-api fuzz api-fuzz torture servers

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-14s %s\n", $$1, $$2 }'

demo: servers ## Run unstale on throwaway servers and show invalidations live. ARGS="--for 10s" ends by itself.
	cargo run --locked --release --quiet -- demo $(ARGS)

check: ## Check types, lints and unit tests: the loop while editing.
	cargo clippy --locked --all-targets --quiet -- -D warnings
	cargo test --locked --lib --quiet

test: servers lint docs ## Run everything that CI runs.
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} cargo test --locked

lint: ## Check the format, and clippy with all features and with none.
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features -- -D warnings

docs: ## Build the API documentation; a broken link fails.
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet

dist: servers ## Build target/dist/unstale for release, stripped, with its debug information in unstale.debug.
	cargo build --locked --profile dist
	cd $(DIST) && objcopy --only-keep-debug unstale unstale.debug && objcopy --strip-all --add-gnu-debuglink=unstale.debug unstale

bench: servers ## Measure replication beside pg_recvlogical, and planning.
	cargo bench --locked --bench drain
	cargo bench --locked --bench planning

bench-outbox: servers ## Measure what the outbox costs writers, and how fast it drains. ARGS="--quick" is shorter.
	cargo bench --locked --bench outbox -- $(ARGS)

bench-api: servers ## Measure the read API beside Express with ioredis; installs wrk and Node. ARGS="--quick" is shorter.
	@sh deploy/install-bench-api.sh
	cargo bench --locked --bench api -- $(ARGS)

fuzz: servers ## Fuzz the decoder, the file and templates, each for FUZZ_SECONDS=60.
	rustup toolchain list | grep -q nightly || rustup toolchain install nightly --profile minimal
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	for target in pgoutput rules template; do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit 1; \
	done

api-fuzz: servers ## Send everything that the OpenAPI document allows, and more, to a demo. ARGS goes to schemathesis.
	@sh deploy/api-fuzz.sh $(ARGS)

torture: servers ## Look for stale values while everything fails. ARGS="--for 1h --seed 7 --mode outbox"
	UNSTALE_TORTURE="$(ARGS)" cargo test --locked --release --test it torture::nothing_stale_survives -- --exact --nocapture

servers: ## Install PostgreSQL, Redis and a C compiler, if they are missing.
	@sh deploy/install-servers.sh
