"""Combined checkpoints for tests, out of small models saved by transformers."""

from dataclasses import replace
from pathlib import Path

import torch
from tests.checkpoint.models import save_language, save_vision

from nvlm.checkpoint.format.adapter import Adapter, adapter_path
from nvlm.checkpoint.format.files import link_files, new_checkpoint, write_tensors
from nvlm.checkpoint.format.manifest import Manifest, read_manifest, write_manifest
from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.parts.adapter import adapter_shapes
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


def with_adapter(source: Path, out: Path, adapter: Adapter, seed: int = 5) -> Manifest:
    """The checkpoint ``source`` with random matrices beside its weights, as training leaves it."""
    manifest = read_manifest(source)
    assert manifest.architecture.language is not None
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, manifest.dtype)
    files = dict(manifest.files)
    with new_checkpoint(out) as directory:
        link_files(source, directory, manifest.files)
        for layer in range(manifest.architecture.language.layers):
            shapes = adapter_shapes(manifest.architecture.language, adapter)
            matrices = {
                name: torch.randn(shape, generator=generator).mul(0.1).to(dtype)
                for name, shape in shapes.items()
            }
            path = adapter_path(layer)
            files[path] = write_tensors(directory, path, matrices)
        changed = replace(manifest, adapter=adapter, files=files)
        write_manifest(directory, changed)
    return changed
