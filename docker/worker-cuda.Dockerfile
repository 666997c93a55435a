# syntax=docker/dockerfile:1
# The same program as worker-cpu, with ONNX Runtime's library for CUDA 12 and cuDNN 9. Needs the NVIDIA container toolkit.
FROM rust:1.95-slim-bookworm AS build
# libjpeg-turbo is built from source.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends cmake make nasm && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package worker \
    && mkdir /out && cp target/release/face-id-worker /out/

# The library looks for its CUDA provider beside itself.
FROM python:3.12-slim-bookworm AS runtime-library
RUN pip install --no-cache-dir --no-deps --no-compile --target /wheel onnxruntime-gpu==1.23.2 \
    && mkdir /onnxruntime && cp /wheel/onnxruntime/capi/libonnxruntime*.so* /onnxruntime/

FROM nvidia/cuda:12.6.3-cudnn-runtime-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home face-id && install -d -o 10001 /cache
COPY --from=runtime-library /onnxruntime /usr/local/lib/onnxruntime
RUN ln -s "$(basename /usr/local/lib/onnxruntime/libonnxruntime.so.*)" /usr/local/lib/onnxruntime/libonnxruntime.so
COPY --from=build /out/face-id-worker /usr/local/bin/face-id-worker
USER 10001
STOPSIGNAL SIGTERM
# Where CUDA does not work the worker does not start: it never falls back to the processor.
ENV ORT_DYLIB_PATH=/usr/local/lib/onnxruntime/libonnxruntime.so FACE_ID_WORKER__EXECUTION_PROVIDER=cuda \
    FACE_ID_CACHE_DIR=/cache FACE_ID_WORKER__PROBES_BIND=0.0.0.0:8081 FACE_ID_LOG__FORMAT=json
VOLUME ["/cache"]
EXPOSE 8081
# The image has no HTTP client; bash can open the connection by itself.
HEALTHCHECK --interval=10s --timeout=12s --start-period=180s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8081 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["face-id-worker"]
