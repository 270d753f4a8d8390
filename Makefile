# Every target sets up what it needs. ARGS goes to the program, as in: make demo ARGS="--for 10s"
ARGS ?=
FUZZ_SECONDS ?= 60
# PostgreSQL refuses to run as root, so the servers run as another user and must be able to read these.
export UNSTALE_PG_BIN

.PHONY: demo test lint bench bench-outbox bench-api fuzz api-fuzz torture servers

demo: servers
	cargo run --locked --release --quiet -- demo $(ARGS)

test: servers lint
	cargo test --locked

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet

bench: servers
	cargo bench --locked --bench drain
	cargo bench --locked --bench planning

# For example: make bench-outbox ARGS="--quick"
bench-outbox: servers
	cargo bench --locked --bench outbox -- $(ARGS)

# For example: make bench-api ARGS="--quick"
bench-api: servers
	@sh deploy/install-bench-api.sh
	cargo bench --locked --bench api -- $(ARGS)

fuzz: servers
	rustup toolchain list | grep -q nightly || rustup toolchain install nightly --profile minimal
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	for target in pgoutput rules template; do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit 1; \
	done

# What the OpenAPI document says, asked of the demo; ARGS goes to schemathesis, as in: make api-fuzz ARGS="--seed 7"
api-fuzz: servers
	@sh deploy/api-fuzz.sh $(ARGS)

# For example: make torture ARGS="--for 1h --seed 7"
torture: servers
	UNSTALE_TORTURE="$(ARGS)" cargo test --locked --release --test it torture::nothing_stale_survives -- --exact --nocapture

servers:
	@sh deploy/install-servers.sh
