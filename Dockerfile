# mmtrain in a container, as docs/install.md installs it.
#   docker build -t mmtrain .                                     for processors alone
#   docker build -t mmtrain:cuda --build-arg DEVICE=cuda .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# cpu or cuda. The wheel of torch for CUDA brings CUDA's libraries itself, so that the image needs none; the
# host has the driver and NVIDIA's container toolkit.
ARG DEVICE=cpu
ARG EXTRAS=onnx,serve

# train.compile needs a compiler.
RUN apt-get update -q \
    && apt-get install -y -q --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN if [ "$DEVICE" = cpu ]; then \
        pip install torch --index-url https://download.pytorch.org/whl/cpu; \
    else \
        pip install torch; \
    fi
COPY pyproject.toml README.md LICENSE THIRD_PARTY.md /src/
COPY mmtrain /src/mmtrain
COPY configs /src/configs
RUN pip install "/src[${EXTRAS}]" && rm -rf /src

WORKDIR /work
ENTRYPOINT ["mmtrain"]
