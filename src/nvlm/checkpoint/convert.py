"""From Hugging Face's layout to a checkpoint: one rank's share of one layer in memory at a time.

The source is mapped anew for every share, so that the pages of the one before are given back. What
is to be read is known, and compared with what is there, before the first byte is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from nvlm.checkpoint import language, vision
from nvlm.checkpoint.architecture import Architecture, LanguageArchitecture, VisionArchitecture
from nvlm.checkpoint.configuration import read_language_architecture, read_vision_architecture
from nvlm.checkpoint.files import FileEntry, entry_of, link_file, new_checkpoint, write_part
from nvlm.checkpoint.huggingface import HuggingFaceWeights, read_json
from nvlm.checkpoint.layout import LANGUAGE, VISION, even_grid, layer_part, padded_rows
from nvlm.checkpoint.manifest import Manifest, Source, Vocabulary, write_manifest
from nvlm.errors import UserError

# What a tokenizer may consist of in a Hugging Face repo; one of the first two holds the pieces.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
# Computed, not learnt; old Llama repos store it.
ROTARY_BUFFER = "rotary_emb.inv_freq"
# A part and its tensors on one tensor-parallel rank.
Part = tuple[int, str, dict[str, Tensor]]


def convert_vision(source: Path, destination: Path, *, tensor: int) -> Manifest:
    """Convert the InternViT in ``source`` for ``tensor`` ranks; any number does.

    Raises UserError if the model is not one, or not whole; nothing is written then.
    """
    tower = read_vision_architecture(source)
    architecture = Architecture(vision=tower)
    grid = even_grid(architecture, tensor=tensor, pipeline=1)
    weights = HuggingFaceWeights(source)
    dtype = weights.check(vision_shapes(tower))
    with new_checkpoint(destination) as partial:
        files = _write_parts(partial, _vision_parts(weights, tower, tensor), weights.bytes)
        manifest = Manifest(
            architecture=architecture,
            grid=grid,
            vocabulary=None,
            dtype=dtype,
            sources=(read_source(source, VISION),),
            files=files,
        )
        write_manifest(partial, manifest)
    return manifest


def convert_language(
    source: Path, destination: Path, *, tensor: int, vocabulary_multiple: int
) -> Manifest:
    """Convert the Llama or Qwen2 in ``source`` for ``tensor`` ranks, its tokenizer included.

    The vocabulary is padded to a multiple of ``vocabulary_multiple * tensor``. Raises UserError if
    the model is no such one, not whole, or doesn't divide; nothing is written then.
    """
    decoder = read_language_architecture(source)
    architecture = Architecture(language=decoder)
    grid = even_grid(architecture, tensor=tensor, pipeline=1)
    padded = padded_rows(decoder.vocabulary, multiple=vocabulary_multiple, tensor=tensor)
    weights = HuggingFaceWeights(source)
    dtype = weights.check(language_shapes(decoder), ignored=(ROTARY_BUFFER,))
    with new_checkpoint(destination) as partial:
        parts = _language_parts(weights, decoder, tensor, padded)
        files = _write_parts(partial, parts, weights.bytes)
        manifest = Manifest(
            architecture=architecture,
            grid=grid,
            vocabulary=Vocabulary(true=decoder.vocabulary, padded=padded),
            dtype=dtype,
            sources=(read_source(source, LANGUAGE),),
            files=files | _link_tokenizer(source, partial),
        )
        write_manifest(partial, manifest)
    return manifest


def vision_shapes(architecture: VisionArchitecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of an InternViT in OpenGVLab's layout."""
    embedding = vision.embedding_shapes(architecture)
    shapes = {f"embeddings.{name}": shape for name, shape in embedding.items()}
    for layer in range(architecture.layers):
        for name, shape in vision.layer_shapes(architecture).items():
            shapes[f"encoder.layers.{layer}.{name}"] = shape
    return shapes


def language_shapes(architecture: LanguageArchitecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a Llama or Qwen2 in transformers' layout."""
    table = (architecture.vocabulary, architecture.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (architecture.hidden_size,),
        "lm_head.weight": table,
    }
    for layer in range(architecture.layers):
        for name, shape in language.layer_shapes(architecture).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes


def read_source(directory: Path, part: str) -> Source:
    """Where the model came from, as the download stage noted it in ``source.json``."""
    path = directory / "source.json"
    note = read_json(path) if path.is_file() else {}
    return Source(
        part=part,
        repo=str(note.get("repo", directory.name)),
        revision=str(note.get("revision", "unknown")),
    )


def _vision_parts(
    weights: HuggingFaceWeights, architecture: VisionArchitecture, size: int
) -> Iterator[Part]:
    for rank in range(size):
        embedding = vision.embedding_to_core(weights.read("embeddings."))
        yield rank, f"{VISION}.embedding", embedding
    for index in range(architecture.layers):
        for rank in range(size):
            layer = weights.read(f"encoder.layers.{index}.")
            core = vision.layer_to_core(layer, architecture, rank, size)
            yield rank, layer_part(VISION, index), core


def _language_parts(
    weights: HuggingFaceWeights, architecture: LanguageArchitecture, size: int, padded: int
) -> Iterator[Part]:
    for rank in range(size):
        table = weights.read("model.embed_tokens.")["weight"]
        rows = language.vocabulary_shard(table, padded, rank, size)
        yield rank, f"{LANGUAGE}.embedding", {"word_embeddings.weight": rows}
    for index in range(architecture.layers):
        for rank in range(size):
            layer = weights.read(f"model.layers.{index}.")
            shard = language.slice_layer(layer, architecture, rank, size)
            core = language.layer_to_core(shard, architecture, size)
            yield rank, layer_part(LANGUAGE, index), core
    for rank in range(size):
        norm, table = weights.read("model.norm.")["weight"], weights.read("lm_head.")["weight"]
        rows = language.vocabulary_shard(table, padded, rank, size)
        head = {"final_layernorm.weight": norm, "output_layer.weight": rows}
        yield rank, f"{LANGUAGE}.head", head


def _write_parts(directory: Path, parts: Iterator[Part], total: int) -> dict[str, FileEntry]:
    """Write ``parts`` as they come, with progress against ``total`` bytes; their entries."""
    files: dict[str, FileEntry] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="convert", disable=None) as progress:
        for rank, part, tensors in parts:
            name, entry = write_part(directory, rank, part, tensors)
            files[name] = entry
            progress.update(entry.bytes)
    return files


def _link_tokenizer(source: Path, directory: Path) -> dict[str, FileEntry]:
    """Put the tokenizer of ``source`` under ``tokenizer/``; the entries of its files."""
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model"} & set(present):
        raise UserError(
            f"{source} has no tokenizer (tokenizer.json or tokenizer.model): download it again"
        )
    for name in present:
        link_file(source, directory / "tokenizer", name)
    return {f"tokenizer/{name}": entry_of(directory / "tokenizer" / name) for name in present}
