# syntax=docker/dockerfile:1
FROM rust:1.95-slim-bookworm AS build
# libjpeg-turbo is built from source.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends cmake make nasm && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package worker \
    && mkdir /out && cp target/release/face-id-worker /out/

# The same library as scripts/setup.sh puts in place.
FROM python:3.12-slim-bookworm AS runtime-library
RUN pip install --no-cache-dir --no-deps --no-compile --target /wheel onnxruntime==1.32.0 \
    && cp /wheel/onnxruntime/capi/libonnxruntime.so.1.32.0 /libonnxruntime.so

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home face-id && install -d -o 10001 /cache
COPY --from=runtime-library /libonnxruntime.so /usr/local/lib/libonnxruntime.so
COPY --from=build /out/face-id-worker /usr/local/bin/face-id-worker
USER 10001
STOPSIGNAL SIGTERM
# Weights are fetched into the cache at the first start, or lie below /assets/models on a machine without network.
ENV ORT_DYLIB_PATH=/usr/local/lib/libonnxruntime.so FACE_ID_CACHE_DIR=/cache FACE_ID_WORKER__PROBES_BIND=0.0.0.0:8081 \
    FACE_ID_LOG__FORMAT=json
VOLUME ["/cache"]
EXPOSE 8081
# The image has no HTTP client; bash can open the connection by itself.
HEALTHCHECK --interval=10s --timeout=12s --start-period=120s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8081 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["face-id-worker"]
