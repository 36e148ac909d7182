# The image of limbeck: the command, the operator, the components of a pipeline, the workers of a Ray cluster, MLflow.
#
#   make image                                      for NVIDIA GPUs (works without one)
#   make image VARIANT=cpu TORCH_INDEX=URL          smaller, without CUDA: URL is a package index with CPU wheels of torch
#
# Everything is installed at the versions of constraints.txt. The base is to have Python 3.11 or later; give it by digest
# for an image that can be made again.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS dependencies
ARG VARIANT=cuda
ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY pyproject.toml constraints.txt docker/dependencies.py ./
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python dependencies.py install "${VARIANT}" "${TORCH_INDEX}" \
    && /opt/venv/bin/python dependencies.py check

FROM ${BASE} AS code
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY --from=dependencies /opt/venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY components components
COPY pipelines pipelines
COPY operator operator
RUN /opt/venv/bin/python -m pip install --constraint constraints.txt --no-deps --target /opt/limbeck .

FROM ${BASE}
LABEL org.opencontainers.image.title="limbeck" \
      org.opencontainers.image.description="Dataset distillation for self-supervised pre-training" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=code /opt/limbeck /opt/limbeck
ENV PATH=/opt/limbeck/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/limbeck \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=limbeck
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["limbeck"]
