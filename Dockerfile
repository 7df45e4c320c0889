# Not tested: this image has not been built yet. docs/releasing.md says what to check first.
#
#   docker build -t vmae .                                     # CPU
#   docker build -t vmae-data --build-arg EXTRAS= .            # shards only, without torch
#   docker build -t vmae-cuda --build-arg BASE=IMAGE .         # a CUDA image that has Python 3.11 as python3
#
# torch's wheels from PyPI bring CUDA's libraries: on the default base the GPU works too, given NVIDIA's driver and
# container toolkit on the host. ffmpeg comes with the package imageio-ffmpeg.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ARG EXTRAS=[train]
ENV PATH=/opt/vmae/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY vmae_data vmae_data
COPY vmae_train vmae_train
RUN python3 -m venv /opt/vmae \
    && pip install -c constraints.txt ".${EXTRAS}" \
    && useradd --create-home --uid 1000 vmae

USER 1000
WORKDIR /home/vmae
CMD ["vmae-shard", "doctor"]
