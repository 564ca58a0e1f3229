# Task 1: the recipe's environment on a machine with NVIDIA GPUs.
#   docker build -t nvlm .
#   docker run --rm -it --gpus all --ipc=host --network=host --ulimit memlock=-1 \
#     --device=/dev/infiniband -e HF_TOKEN -v "$PWD:/nvlm" nvlm dvc exp run -S scale=full sft_72b
# --ipc=host: data workers and NCCL pass tensors through shared memory. The other three are for
# InfiniBand: without them, or without its libraries, NCCL talks TCP and says so only under
# NCCL_DEBUG=INFO ("NET/Socket" for "NET/IB"). EFA wants the aws-ofi-nccl plugin besides.
# PyTorch comes with the image; its version is the one in requirements.lock.
ARG PYTORCH=2.13.0-cuda13.0-cudnn9-runtime
FROM pytorch/pytorch:${PYTORCH}

# DVC needs git: for the repository in which it runs, and for experiments. NCCL opens libibverbs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make python3-venv \
       libibverbs1 ibverbs-providers librdmacm1 rdma-core \
    && rm -rf /var/lib/apt/lists/*

# An environment of its own that sees the image's PyTorch: pip finds the pinned one and keeps it.
RUN python3 -m venv --system-site-packages /opt/nvlm
ENV PATH=/opt/nvlm/bin:$PATH

WORKDIR /nvlm
COPY requirements.lock pyproject.toml README.md ./
RUN pip install --no-cache-dir -r requirements.lock

COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
# The mounted repository belongs to the user outside.
RUN git config --system --add safe.directory /nvlm

CMD ["python", "src/environment.py", "--out", "metrics/environment.json"]
