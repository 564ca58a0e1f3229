"""A checkpoint as a Hugging Face directory in the layout of nvidia/NVLM-D-72B."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nvlm.atomic import write_bytes, write_text
from nvlm.checkpoint.format.files import bytes_of, new_checkpoint, safetensors_header
from nvlm.checkpoint.format.layout import part_names
from nvlm.checkpoint.format.manifest import Manifest, read_manifest
from nvlm.checkpoint.format.writing import write_files
from nvlm.checkpoint.huggingface.adapter import export_adapter
from nvlm.checkpoint.huggingface.merged import whole_tensors
from nvlm.checkpoint.huggingface.nvlm_d import (
    TABLES,
    configuration,
    exported_rows,
    part_shapes,
    preprocessor,
)
from nvlm.checkpoint.huggingface.tokenizer import TokenIds, export_tokenizer, token_ids
from nvlm.checkpoint.huggingface.weights import INDEX
from nvlm.errors import UserError

# Goes along as it is, so that transformers can run the export.
REMOTE_CODE = Path(__file__).with_name("remote_code")


@dataclass(kw_only=True)
class _Shard:
    """A file of the export: which tensors of which parts, in order."""

    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    bytes: int = 0


def export_hf(source: Path, destination: Path, *, shard_bytes: int, apart: bool = False) -> None:
    """Write the checkpoint ``source`` for ``AutoModel`` and vLLM.

    Weights in files of at most ``shard_bytes`` (a larger tensor has a file of its own), with an
    index; config.json; configuration and modeling files; preprocessor; tokenizer; chat template. An
    adapter is folded in or, with ``apart``, left out and written for PEFT into ``adapter``. Raises
    UserError if ``source`` is one half of a model alone, has no tokenizer, or no adapter that could
    be apart.
    """
    manifest = whole = read_manifest(source)
    if apart:
        if manifest.adapter is None:
            raise UserError(f"{source} has no adapter: leave --adapter out")
        manifest = dataclasses.replace(whole, adapter=None)
    if not (manifest.architecture.vision and manifest.architecture.language):
        raise UserError(f"{source} is one half of a model: combine it with the other one first")
    ids = token_ids(source / "tokenizer")
    shards = plan_shards(manifest, shard_bytes, ids)
    with new_checkpoint(destination) as directory:
        files = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
        tasks: Iterator[Callable[[], tuple[Path, None]]] = (
            partial(_write_shard, directory / file, source, manifest, shard)
            for file, shard in zip(files, shards, strict=True)
        )
        total = sum(shard.bytes for shard in shards)
        for _ in write_files(tasks, total, "export"):
            pass
        placed = zip(files, shards, strict=True)
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, shard in placed for name in shard.tensors},
        }
        write_json(directory / INDEX, index)
        _write_description(source, directory, manifest, ids)
        if apart:
            export_adapter(source, directory / "adapter", whole)


def plan_shards(manifest: Manifest, shard_bytes: int, ids: TokenIds) -> list[_Shard]:
    """Share tensors out over files, in order."""
    assert manifest.vocabulary is not None
    rows = exported_rows(manifest.vocabulary.true, ids.image)
    if shard_bytes < 1:
        raise UserError(f"a shard size of {shard_bytes} bytes should be 1 or more")
    size = getattr(torch, manifest.dtype).itemsize
    shards = [_Shard()]
    for part in part_names(manifest.architecture):
        for name, shape in part_shapes(manifest.architecture, part, rows).items():
            tensor_bytes = torch.Size(shape).numel() * size
            if shards[-1].tensors and shards[-1].bytes + tensor_bytes > shard_bytes:
                shards.append(_Shard())
            shard = shards[-1]
            shard.tensors[name] = shape
            shard.bytes += tensor_bytes
            if part not in shard.parts:
                shard.parts.append(part)
    return shards


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` with sorted keys: the same content gives the same bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _write_shard(path: Path, source: Path, manifest: Manifest, shard: _Shard) -> tuple[Path, None]:
    dtype = getattr(torch, manifest.dtype)
    promised = {
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, shape in shard.tensors.items()
    }
    with path.open("xb") as file:
        # transformers refuses a file without this note.
        file.write(safetensors_header(promised, {"format": "pt"}))
        for part in shard.parts:
            for name, pieces in whole_tensors(source, manifest, part):
                if name not in promised:
                    continue  # in the file before or after this one
                written = sum(file.write(bytes_of(piece)) for piece in pieces)
                if name in TABLES:  # rows up to the image token's
                    written += file.write(bytes(promised[name].nbytes - written))
                if written != promised[name].nbytes:
                    raise ValueError(f"{name} has {written} bytes, not {promised[name].nbytes}")
    return path, None


def _write_description(source: Path, directory: Path, manifest: Manifest, ids: TokenIds) -> None:
    """Everything that is not weights."""
    tower, decoder = manifest.architecture.vision, manifest.architecture.language
    assert tower is not None and decoder is not None
    names = [
        name.removeprefix("tokenizer/")
        for name in manifest.other_files
        if name.startswith("tokenizer/")
    ]
    export_tokenizer(source / "tokenizer", directory, names, family=decoder.family, ids=ids)
    config = configuration(
        manifest.architecture, dtype=manifest.dtype, image_token_id=ids.image, tokens=ids.special
    )
    write_json(directory / "config.json", config)
    write_json(directory / "preprocessor_config.json", preprocessor(tower.image_size))
    for path in sorted(REMOTE_CODE.glob("*_nvlm_d.py")):
        write_bytes(directory / path.name, path.read_bytes())
