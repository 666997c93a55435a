# syntax=docker/dockerfile:1
# Two images: face-id-api, and with `--target command` the command `face-id` (for `face-id migrate`).
FROM rust:1.95-slim-bookworm AS build
# libjpeg-turbo is built from source.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends cmake make nasm && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package api --package cli \
    && mkdir /out && cp target/release/face-id-api target/release/face-id /out/

FROM debian:bookworm-slim AS base
# The store's and the database's certificates are checked against these.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home face-id
USER 10001
STOPSIGNAL SIGTERM

FROM base AS command
COPY --from=build /out/face-id /usr/local/bin/face-id
ENTRYPOINT ["face-id"]

FROM base AS api
COPY --from=build /out/face-id-api /usr/local/bin/face-id-api
ENV FACE_ID_SERVER__BIND=0.0.0.0:8080 FACE_ID_LOG__FORMAT=json
EXPOSE 8080
# The image has no HTTP client; bash can open the connection by itself.
HEALTHCHECK --interval=10s --timeout=12s --start-period=20s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["face-id-api"]
