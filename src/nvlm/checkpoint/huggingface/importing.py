"""A Hugging Face directory in the layout of nvidia/NVLM-D-72B, as a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.files import new_checkpoint
from nvlm.checkpoint.format.layout import LANGUAGE, PROJECTION, VISION, even_grid, padded_rows
from nvlm.checkpoint.format.manifest import Manifest, Vocabulary, write_manifest
from nvlm.checkpoint.format.writing import Job, write_parts
from nvlm.checkpoint.huggingface.configuration import language_architecture, vision_architecture
from nvlm.checkpoint.huggingface.convert import (
    language_jobs,
    link_tokenizer,
    read_source,
    vision_jobs,
)
from nvlm.checkpoint.huggingface.nvlm_d import DUMMY_HEADS, PROJECTOR, all_shapes
from nvlm.checkpoint.huggingface.tokenizer import TRAINED_TOKENIZER
from nvlm.checkpoint.huggingface.weights import HuggingFaceWeights, read_json
from nvlm.checkpoint.parts.projector import slice_projector
from nvlm.errors import UserError


def import_hf(
    source: Path, destination: Path, *, tensor: int, vocabulary_multiple: int
) -> Manifest:
    """Convert the NVLM_D model in ``source`` for ``tensor`` ranks and one pipeline stage.

    Raises UserError if it is no such model, not whole, or doesn't divide; nothing is written then.
    """
    architecture, stored_rows = read_architecture(source)
    assert architecture.language is not None and architecture.vision is not None
    grid = even_grid(architecture, tensor=tensor, pipeline=1)
    rows = architecture.language.vocabulary
    padded = padded_rows(rows, multiple=vocabulary_multiple, tensor=tensor)
    weights = HuggingFaceWeights(source)
    dtype = weights.check(all_shapes(architecture, stored_rows))
    jobs = chain(
        vision_jobs(weights, architecture.vision, tensor, prefix=f"{VISION}.", dummies=DUMMY_HEADS),
        (_projector_job(weights, rank, tensor) for rank in range(tensor)),
        language_jobs(weights, architecture.language, tensor, padded, prefix=f"{LANGUAGE}."),
    )
    with new_checkpoint(destination) as directory:
        trained = source / TRAINED_TOKENIZER
        tokenizer = link_tokenizer(trained if trained.is_dir() else source, directory)
        files = write_parts(directory, jobs, weights.bytes, "import")
        manifest = Manifest(
            architecture=architecture,
            grid=grid,
            vocabulary=Vocabulary(true=rows, padded=padded),
            dtype=dtype,
            sources=(read_source(source, VISION), read_source(source, LANGUAGE)),
            files=files | tokenizer,
        )
        write_manifest(directory, manifest)
    return manifest


def read_architecture(source: Path) -> tuple[Architecture, int]:
    """The tower and the decoder of ``source/config.json``, and the rows of its vocabulary's tables.

    Those behind the trained vocabulary are no part of the architecture. Raises UserError for
    another model.
    """
    path = source / "config.json"
    config = read_json(path)
    if config.get("architectures") != ["NVLM_D"]:
        raise UserError(f"{path} is of {config.get('architectures')}, not of NVLM_D")
    tower, decoder = (_section(path, config, name) for name in ("vision_config", "llm_config"))
    scaling = decoder.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("type") == "dynamic":
        # nvidia/NVLM-D-72B's: it stretches frequencies beyond max_position_embeddings only.
        decoder = {**decoder, "rope_scaling": None}
    if tower.get("num_dummy_heads", DUMMY_HEADS) != DUMMY_HEADS:
        raise UserError(f"{path}: num_dummy_heads should be {DUMMY_HEADS}, as in every NVLM_D")
    language = language_architecture(path, decoder)
    rows = language.vocabulary
    trained = config.get("trained_vocab_size", rows)
    if type(trained) is not int or not 0 < trained <= rows:
        raise UserError(f"{path}: trained_vocab_size {trained!r} should be of the {rows} rows")
    return Architecture(
        vision=vision_architecture(path, tower), language=replace(language, vocabulary=trained)
    ), rows


def _section(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(config.get(name), dict):
        raise UserError(f"{path} has no {name}: download the model again")
    return dict(config[name])


def _projector_job(weights: HuggingFaceWeights, rank: int, size: int) -> Job:
    def make() -> dict[str, Tensor]:
        found = weights.read("mlp1.")
        whole = {core: found[name.removeprefix("mlp1.")] for name, core in PROJECTOR.items()}
        return slice_projector(whole, rank, size)

    return rank, PROJECTION, make
