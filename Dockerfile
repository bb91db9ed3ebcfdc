# Clearcause on a slim Python; pinned by requirements.lock, run as an unprivileged user.
# The torch wheels of the package index carry CUDA, so the same image runs on a GPU (docker run --gpus all).
FROM python:3.13-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1

WORKDIR /opt/clearcause
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN python -m pip install --no-cache-dir --require-hashes --requirement requirements.lock

COPY pipeline pipeline
COPY flows flows
COPY configs configs
COPY models models
RUN python -m pip install --no-cache-dir --no-deps --editable . \
    && useradd --create-home --uid 1000 clearcause \
    && mkdir /data && chown clearcause /data

USER clearcause
WORKDIR /data
HEALTHCHECK --interval=60s --timeout=20s CMD ["clearcause", "schema"]
ENTRYPOINT ["clearcause"]
CMD ["--help"]
