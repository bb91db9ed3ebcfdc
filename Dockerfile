# One image for every role: the program, the Prefect server and its runner, the Dask scheduler and its workers, so that
# all of them hold the same versions. Python is Debian's own. See deploy/README.md.
#
#   docker build -t clearcause:gpu .
#   docker build -t clearcause:cpu --build-arg ACCELERATOR=cpu --build-arg TORCH_WHEELS="ADDRESS ADDRESS" .
FROM debian:trixie-20260918-slim@sha256:a99cfc517144bc59b1978475ec53b46ecabec7e43635402ee5b77cc54cd1b20a AS base
ENV DEBIAN_FRONTEND=noninteractive
# versions are those of the dated image's release: Debian removes superseded ones, so a pin here would break within weeks
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /opt/clearcause
COPY deploy/requirements-build.lock deploy/
RUN python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement deploy/requirements-build.lock
# gpu: torch as the package index has it, with CUDA. cpu: the two wheels of TORCH_WHEELS, each ADDRESS#sha256=DIGEST.
ARG ACCELERATOR=gpu
ARG TORCH_WHEELS=""
COPY deploy/requirements.lock deploy/accelerator.py deploy/
RUN python3 deploy/accelerator.py deploy/requirements.lock "${ACCELERATOR}" "${TORCH_WHEELS}" > /build/chosen.lock \
    && python3 -m venv --without-pip .venv \
    && /build/bin/uv pip sync --python .venv/bin/python --require-hashes /build/chosen.lock
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY flows flows
RUN /build/bin/uv pip install --python .venv/bin/python --no-deps --build-constraints deploy/requirements-build.lock \
        --editable . \
    && /build/bin/uv pip check --python .venv/bin/python \
    && python3 -m compileall -q pipeline flows \
    # uv leaves it for everyone to write
    && rm --force .venv/.lock

FROM base
LABEL org.opencontainers.image.title="clearcause" \
      org.opencontainers.image.description="Why was it cleared? Drivers of forest loss from Landsat." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 1000 clearcause \
    && useradd --uid 1000 --gid 1000 --create-home --shell /usr/sbin/nologin clearcause \
    && install --directory --owner=clearcause --group=clearcause /data /prefect
# all of it root's: who runs the program cannot change it
COPY --from=build /opt/clearcause /opt/clearcause
COPY configs /opt/clearcause/configs
COPY models /opt/clearcause/models
COPY deploy/healthcheck.py /opt/clearcause/deploy/
ENV PATH=/opt/clearcause/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/home/clearcause \
    PYTHONUNBUFFERED=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_RESULTS_DEFAULT_SERIALIZER=json \
    DO_NOT_TRACK=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CLEARCAUSE_ROLE=program
USER 1000:1000
WORKDIR /data
# what it asks depends on CLEARCAUSE_ROLE: program, server, runner, scheduler or worker
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --start-interval=5s --retries=3 \
    CMD ["python3", "/opt/clearcause/deploy/healthcheck.py"]
# without an init, SIGTERM would not reach a program that runs as the first process
ENTRYPOINT ["tini", "--"]
CMD ["clearcause", "--help"]
