"""Tests run on the CPU, also where there are GPUs, unless CUDA_VISIBLE_DEVICES is set."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
