# erllama on CPUs. From the root of the repository:
#   docker build -f deploy/cpu.Dockerfile -t erllama:cpu .
#   docker run --rm -p 127.0.0.1:8000:8000 --shm-size 4g --stop-timeout 90 -v erllama:/var/lib/erllama erllama:cpu
FROM ubuntu:24.04 AS build
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update -q \
 && apt-get install -y -q --no-install-recommends g++ make python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# llama.cpp first: its minutes are spent again only when its version or its flags change. For any CPU with AVX2, not for the builder's own.
COPY Makefile constraints.txt ./
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF"
RUN make llama VENV=/opt/erllama CMAKE_ARGS="$CMAKE_ARGS"
COPY pyproject.toml README.md LICENSE ./
COPY cache_store cache_store
COPY erllama erllama
COPY deployments deployments
RUN /opt/erllama/bin/pip install --no-cache-dir -c constraints.txt ".[s3]"

FROM ubuntu:24.04
# libgomp1 is llama.cpp's, zlib1g HAProxy's; tini ends what Ray's processes leave behind; wget asks for health here and for KubeRay.
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    ca-certificates libgomp1 libstdc++6 python3 tini wget zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/erllama erllama \
 && install -d -o erllama -g erllama /var/lib/erllama
COPY --from=build /opt/erllama /opt/erllama
COPY deploy/image_config.yaml /etc/erllama/serve_config.yaml
ENV PATH=/opt/erllama/bin:$PATH HOME=/var/lib/erllama
USER 10001:10001
WORKDIR /var/lib/erllama
# models of the hub, and the KV store: ~/.cache/erllama
VOLUME /var/lib/erllama
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["wget", "-q", "-T", "4", "-O", "/dev/null", "http://127.0.0.1:8000/health/ready"]
ENTRYPOINT ["tini", "--", "erllama"]
CMD ["serve", "/etc/erllama/serve_config.yaml"]
