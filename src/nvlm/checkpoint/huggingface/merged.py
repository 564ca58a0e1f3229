"""Whole tensors of a checkpoint under the names of NVLM_D, merged from its ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.layout import LANGUAGE, PROJECTION, VISION
from nvlm.checkpoint.format.manifest import Manifest
from nvlm.checkpoint.format.sharding import merge
from nvlm.checkpoint.huggingface.nvlm_d import DUMMY_HEADS, PROJECTOR
from nvlm.checkpoint.parts import language, projector, vision
from nvlm.checkpoint.parts.adapter import read_layer

# A tensor as pieces along its first dimension: large tables are never in memory as a whole.
Pieces = Iterator[Tensor]


def whole_tensors(source: Path, manifest: Manifest, part: str) -> Iterator[tuple[str, Pieces]]:
    """The tensors that ``part`` becomes, in the order of ``nvlm_d.part_shapes``; an adapter is
    folded in.

    Raises UserError if a tensor that every rank has differs between them.
    """
    half, _, kind = part.partition(".")
    if half == LANGUAGE and not kind.startswith("layer"):
        yield from _language_ends(source, manifest, kind)
        return
    ranks = range(manifest.grid.tensor)
    if half == LANGUAGE:
        decoder = manifest.architecture.language
        assert decoder is not None
        layers = [read_layer(source, manifest, rank, part) for rank in ranks]
        for short in language.layer_shapes(decoder):
            name = f"{LANGUAGE}.model.layers.{_number(kind)}.{short}"
            split = language.SPLIT.get(short)
            yield name, _joined([layer[short] for layer in layers], split, name)
        return
    shards = [read_part(source, rank, part) for rank in ranks]
    if half == PROJECTION:
        for name, core in PROJECTOR.items():
            split = projector.SPLIT.get(core)
            yield name, _joined([shard[core] for shard in shards], split, name)
    else:
        yield from _tower(shards, manifest, kind)


def _tower(
    shards: Sequence[dict[str, Tensor]], manifest: Manifest, kind: str
) -> Iterator[tuple[str, Pieces]]:
    tower = manifest.architecture.vision
    assert tower is not None
    if kind == "embedding":
        core = {
            name: merge([shard[name] for shard in shards], None, f"{VISION} {name}")
            for name in shards[0]
        }
        for name, tensor in vision.embedding_to_hf(core).items():
            yield f"{VISION}.embeddings.{name}", iter([tensor])
        return
    layer = vision.add_dummy_heads(vision.layer_to_hf(shards, tower), tower, DUMMY_HEADS)
    for short in vision.layer_shapes(tower):
        yield f"{VISION}.encoder.layers.{_number(kind)}.{short}", iter([layer[short]])


def _language_ends(source: Path, manifest: Manifest, kind: str) -> Iterator[tuple[str, Pieces]]:
    """Embedding or head, without the rows of padding."""
    part = f"{LANGUAGE}.{kind}"
    if kind == "embedding":
        rows = partial(_rows, source, manifest, part, "word_embeddings.weight")
        yield f"{LANGUAGE}.model.embed_tokens.weight", rows()
        return
    norms = [
        read_part(source, rank, part)["final_layernorm.weight"]
        for rank in range(manifest.grid.tensor)
    ]
    yield f"{LANGUAGE}.model.norm.weight", iter([merge(norms, None, "final_layernorm.weight")])
    assert manifest.architecture.language is not None
    if not manifest.architecture.language.tied_embeddings:
        yield f"{LANGUAGE}.lm_head.weight", _rows(source, manifest, part, "output_layer.weight")


def _rows(source: Path, manifest: Manifest, part: str, name: str) -> Pieces:
    """A rank's rows at a time, each mapped anew, up to the true vocabulary."""
    assert manifest.vocabulary is not None
    left = manifest.vocabulary.true
    for rank in range(manifest.grid.tensor):
        table = read_part(source, rank, part)[name]
        own = min(left, table.shape[0])
        left -= own
        if own:
            yield table[:own]


def _joined(shards: Sequence[Tensor], split: int | None, name: str) -> Pieces:
    if split == 0:
        yield from shards
    elif split is None:
        yield merge(shards, None, name)
    else:
        yield torch.cat(list(shards), split)


def _number(kind: str) -> int:
    return int(kind.removeprefix("layer."))
