# syntax=docker/dockerfile:1
# docker build -t restomod .                       GPUs: CUDA's base image, flash-attn
# docker build -t restomod-cpu --target cpu .      no GPU
# docker run --rm --gpus all --ipc host restomod   restomod doctor, on the GPUs
# --build-arg COMMIT=$(git rev-parse HEAD) lets runs record what they were built from.

# CUDA 13.0 is what torch in requirements.lock was built with. Its libraries come with torch; the base
# image has what the driver wants.
ARG CUDA=13.0.1
ARG SYSTEM=ubuntu24.04

FROM ubuntu:24.04 AS base-cpu

FROM nvidia/cuda:${CUDA}-base-${SYSTEM} AS base-cuda

# The lock alone, so that a change of our code installs nothing anew. The folder is copied to where it
# was made, on the same system.
FROM base-cpu AS dependencies
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
  && rm -rf /var/lib/apt/lists/*
RUN --mount=type=cache,target=/root/.cache/pip \
  python3 -m venv /opt/venv && /opt/venv/bin/python -m pip install "uv==0.13.9"
COPY requirements.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/uv UV_LINK_MODE=copy \
  /opt/venv/bin/uv pip install --python /opt/venv/bin/python --no-deps --require-hashes \
  -r /tmp/requirements.lock

# Hours on a small machine; put a wheel into wheels/ to take that instead.
FROM nvidia/cuda:${CUDA}-devel-${SYSTEM} AS flash-attn
ARG FLASH_ATTN=2.8.3.post2
ARG FLASH_ATTN_CUDA_ARCHS="80;90;100"
ARG MAX_JOBS=8
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends g++ git ninja-build python3-dev python3-venv \
  && rm -rf /var/lib/apt/lists/*
COPY --from=dependencies /opt/venv /opt/venv
COPY wheels /wheels
RUN --mount=type=cache,target=/root/.cache/pip \
  /opt/venv/bin/python -m pip wheel --no-deps --wheel-dir /wheels "einops==0.8.1" \
  && { ls /wheels/flash_attn-*.whl || { \
  /opt/venv/bin/python -m pip install "wheel==0.45.1" && FLASH_ATTENTION_FORCE_BUILD=TRUE \
  /opt/venv/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels \
  "flash-attn==${FLASH_ATTN}"; }; }

FROM base-cpu AS cpu
# g++ compiles torch.compile's CPU code, and Triton's launchers.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates g++ git python3 python3-dev \
  && rm -rf /var/lib/apt/lists/*
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /workspace
COPY pyproject.toml README.md LICENSE train.py ./
COPY src src
COPY launchers launchers
COPY yamls yamls
COPY data_prep data_prep
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
  && chown 1000:1000 /workspace
ARG COMMIT=unknown
ENV PATH=/opt/venv/bin:$PATH HOME=/home/ubuntu RESTOMOD_COMMIT=$COMMIT
# Ubuntu's own first user.
USER 1000:1000
# It measures devices: seldom, beside training.
HEALTHCHECK --interval=12h --timeout=5m --start-period=1m --retries=1 CMD ["restomod", "doctor"]
CMD ["restomod", "doctor"]

FROM base-cuda AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates g++ git python3 python3-dev \
  && rm -rf /var/lib/apt/lists/*
COPY --from=dependencies /opt/venv /opt/venv
RUN --mount=type=bind,from=flash-attn,source=/wheels,target=/wheels \
  /opt/venv/bin/python -m pip install --no-cache-dir --no-deps /wheels/*.whl
COPY --from=cpu /workspace /workspace
WORKDIR /workspace
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
  && chown 1000:1000 /workspace
ARG COMMIT=unknown
ENV PATH=/opt/venv/bin:$PATH HOME=/home/ubuntu RESTOMOD_COMMIT=$COMMIT
USER 1000:1000
HEALTHCHECK --interval=12h --timeout=5m --start-period=1m --retries=1 CMD ["restomod", "doctor"]
CMD ["restomod", "doctor"]
