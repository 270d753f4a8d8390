FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release

FROM debian:bookworm-slim
RUN useradd --system --no-create-home unstale
COPY --from=build /src/target/release/unstale /usr/local/bin/unstale
USER unstale
ENV UNSTALE_CONFIG=/etc/unstale/invalidation.yaml
ENTRYPOINT ["unstale"]
CMD ["run"]
