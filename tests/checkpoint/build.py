"""Combined checkpoints for tests, out of small models saved by transformers."""

from pathlib import Path

import torch
from tests.checkpoint.models import save_language, save_vision

from nvlm.checkpoint.format.manifest import Manifest
from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.parts.projector import ProjectorParams
from nvlm.checkpoint.relayout.combine import combine

PROJECTOR = ProjectorParams(init_std=0.02, seed=3)


def build_combined(
    directory: Path,
    *,
    family: str = "qwen2",
    tensor: int = 2,
    layers: int = 4,
    multiple: int = 8,
    dtype: torch.dtype = torch.bfloat16,
    tower: str = "6B",
    tied: bool = False,
) -> Manifest:
    """``directory/combined``, its halves beside it, and their sources in hf_vision, hf_language."""
    save_vision(directory / "hf_vision", like=tower, dtype=dtype)
    save_language(directory / "hf_language", family, layers=layers, dtype=dtype, tied=tied)
    convert_vision(directory / "hf_vision", directory / "vision", tensor=tensor)
    convert_language(
        directory / "hf_language",
        directory / "language",
        tensor=tensor,
        vocabulary_multiple=multiple,
    )
    return combine(directory / "vision", directory / "language", directory / "combined", PROJECTOR)
