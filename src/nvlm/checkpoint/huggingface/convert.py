"""From Hugging Face's layout to a checkpoint: one rank's share of a layer in a worker's memory.

The source is mapped anew for every share, so that the pages of the one before are given back. What
is to be read is known, and compared with what is there, before the first byte is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.checkpoint.format.files import DTYPES, FileEntry, entry_of, link_file, new_checkpoint
from nvlm.checkpoint.format.layout import LANGUAGE, VISION, even_grid, layer_part, padded_rows
from nvlm.checkpoint.format.manifest import Manifest, Source, Vocabulary, write_manifest
from nvlm.checkpoint.format.writing import Job, write_parts
from nvlm.checkpoint.huggingface.configuration import (
    read_language_architecture,
    read_vision_architecture,
)
from nvlm.checkpoint.huggingface.weights import HuggingFaceWeights, read_json
from nvlm.checkpoint.parts import language, vision
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
HEAD = "lm_head.weight"


def convert_vision(
    source: Path, destination: Path, *, tensor: int, dtype: str | None = None
) -> Manifest:
    """Convert the InternViT in ``source`` for ``tensor`` ranks; any number does.

    ``dtype`` casts its tensors ("bfloat16"); None keeps what they are. Raises UserError if the
    model is not one, or not whole; nothing is written then.
    """
    tower = read_vision_architecture(source)
    architecture = Architecture(vision=tower)
    grid = even_grid(architecture, tensor=tensor, pipeline=1)
    weights = HuggingFaceWeights(source)
    found = weights.check(vision_shapes(tower))
    dtype = found if dtype is None else dtype
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    jobs = vision_jobs(weights, tower, tensor, dtype=getattr(torch, dtype))
    with new_checkpoint(destination) as directory:
        files = write_parts(directory, jobs, weights.bytes, "convert")
        manifest = Manifest(
            architecture=architecture,
            grid=grid,
            vocabulary=None,
            dtype=dtype,
            sources=(read_source(source, VISION),),
            files=files,
        )
        write_manifest(directory, manifest)
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
    # transformers, too, passes over a head that is stored beside the embedding it is tied to.
    ignored = (ROTARY_BUFFER, HEAD) if decoder.tied_embeddings else (ROTARY_BUFFER,)
    dtype = weights.check(language_shapes(decoder), ignored=ignored)
    jobs = language_jobs(weights, decoder, tensor, padded)
    with new_checkpoint(destination) as directory:
        tokenizer = link_tokenizer(source, directory)
        files = write_parts(directory, jobs, weights.bytes, "convert")
        manifest = Manifest(
            architecture=architecture,
            grid=grid,
            vocabulary=Vocabulary(true=decoder.vocabulary, padded=padded),
            dtype=dtype,
            sources=(read_source(source, LANGUAGE),),
            files=files | tokenizer,
        )
        write_manifest(directory, manifest)
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
    }
    if not architecture.tied_embeddings:
        shapes[HEAD] = table
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


def vision_jobs(
    weights: HuggingFaceWeights,
    architecture: VisionArchitecture,
    size: int,
    *,
    prefix: str = "",
    dummies: int = 0,
    dtype: torch.dtype | None = None,
) -> Iterator[Job]:
    """What makes every part of the tower, for ``size`` ranks.

    ``prefix`` comes before the names of ``vision_shapes``; the last ``dummies`` heads of the source
    are zeros to be left out.
    """

    def cast(pieces: Sequence[Tensor]) -> list[Tensor]:
        return [piece.to(dtype or piece.dtype) for piece in pieces]

    def embedding() -> dict[str, list[Tensor]]:
        core = vision.embedding_to_core(weights.read(f"{prefix}embeddings."))
        return {name: cast([tensor]) for name, tensor in core.items()}

    def layer(index: int, rank: int) -> dict[str, list[Tensor]]:
        whole = weights.read(f"{prefix}encoder.layers.{index}.")
        whole = vision.drop_dummy_heads(whole, architecture, dummies)
        core = vision.layer_to_pieces(whole, architecture, rank, size)
        return {name: cast(pieces) for name, pieces in core.items()}

    for rank in range(size):
        yield rank, f"{VISION}.embedding", embedding
    for index in range(architecture.layers):
        for rank in range(size):
            yield rank, layer_part(VISION, index), partial(layer, index, rank)


def language_jobs(
    weights: HuggingFaceWeights,
    architecture: LanguageArchitecture,
    size: int,
    padded: int,
    *,
    prefix: str = "",
) -> Iterator[Job]:
    """What makes every part of the decoder, for ``size`` ranks and ``padded`` rows."""

    rows = padded // size

    def table(name: str, rank: int) -> list[Tensor]:
        whole = weights.read(f"{prefix}{name}.")["weight"][: architecture.vocabulary]
        return language.vocabulary_rows([whole], rank * rows, (rank + 1) * rows)

    def embedding(rank: int) -> dict[str, list[Tensor]]:
        return {"word_embeddings.weight": table("model.embed_tokens", rank)}

    def layer(index: int, rank: int) -> dict[str, list[Tensor]]:
        whole = weights.read(f"{prefix}model.layers.{index}.")
        shard = language.slice_layer(whole, architecture, rank, size)
        return language.layer_to_pieces(shard, architecture, size)

    def head(rank: int) -> dict[str, list[Tensor]]:
        norm = weights.read(f"{prefix}model.norm.")["weight"]
        if architecture.tied_embeddings:
            return {"final_layernorm.weight": [norm]}
        return {"final_layernorm.weight": [norm], "output_layer.weight": table("lm_head", rank)}

    for rank in range(size):
        yield rank, f"{LANGUAGE}.embedding", partial(embedding, rank)
    for index in range(architecture.layers):
        for rank in range(size):
            yield rank, layer_part(LANGUAGE, index), partial(layer, index, rank)
    for rank in range(size):
        yield rank, f"{LANGUAGE}.head", partial(head, rank)


def link_tokenizer(source: Path, directory: Path) -> dict[str, FileEntry]:
    """Put the tokenizer of ``source`` under ``tokenizer/``; the entries of its files."""
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model"} & set(present):
        raise UserError(
            f"{source} has no tokenizer (tokenizer.json or tokenizer.model): download it again"
        )
    for name in present:
        link_file(source, directory / "tokenizer", name)
    return {f"tokenizer/{name}": entry_of(directory / "tokenizer" / name) for name in present}
