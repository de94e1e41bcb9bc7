# Serves bundles; trains nothing: see deploy/requirements-serve.txt.
#   docker build -t raysys-serve .
#   docker run --shm-size=2g -p 127.0.0.1:8000:8000 -v /srv/raysys:/srv/raysys raysys-serve
# It was written where no container engine is: hadolint and tests read it, it was never built.
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY raysys raysys
COPY tune_configs tune_configs
COPY serve_configs serve_configs
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# libgomp1: LightGBM and XGBoost; wget: KubeRay's probes. Without versions: Debian's mirrors drop a
# package when its security update comes, so that a pin would break the build and keep the hole.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 wget \
    && rm -rf /var/lib/apt/lists/*
# of PyTorch for CPUs; with a GPU: --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt deploy/requirements-serve.txt /build/
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" \
    --constraint /build/constraints.txt --requirement /build/requirements-serve.txt
COPY --from=wheel /wheels /build/wheels
RUN pip install --no-cache-dir --no-deps /build/wheels/*.whl && rm -r /build
RUN useradd --create-home --uid 1000 ray && mkdir -p /srv/raysys && chown ray /srv/raysys
USER 1000
WORKDIR /srv/raysys
ENV RAYSYS_HOME=/srv/raysys \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1
EXPOSE 8000
# /srv/raysys/serve.yaml: a serve config with host 0.0.0.0 and keys, such as serve_configs/production.yaml
# without the `num_gpus` of its Transformer, which no container without a GPU has room for
CMD ["raysys", "deploy", "--config", "/srv/raysys/serve.yaml"]
