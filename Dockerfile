# syntax=docker/dockerfile:1
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# The dependencies are a layer of their own, which lasts until Cargo.lock changes: only empty sources are built with them.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/it benches \
 && touch src/lib.rs tests/it/main.rs \
 && for main in src/main benches/api benches/drain benches/outbox benches/planning; do echo 'fn main() {}' > "$main.rs"; done \
 && cargo build --locked --profile dist
COPY . .
# Cargo compares times, and the empty sources are newer than those that were just copied.
RUN find src -name '*.rs' -exec touch {} + \
 && cargo build --locked --profile dist \
 && strip target/dist/unstale

FROM debian:bookworm-slim
RUN useradd --system --no-create-home unstale
COPY --from=build /src/target/dist/unstale /usr/local/bin/unstale
USER unstale
ENV UNSTALE_CONFIG=/etc/unstale/invalidation.yaml
ENTRYPOINT ["unstale"]
CMD ["run"]
