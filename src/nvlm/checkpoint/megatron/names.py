"""Where Megatron-LM keeps the tensors of a part: names in a rank's ``model``, stage by stage.

Transformer Engine's names (norms fused into the linear layers after them). Layers of the decoder
are numbered anew on each pipeline stage; tower and projector are the first stage's, the head is the
last one's. A file of one half alone has no prefix, as Megatron's converters write it.
"""

from __future__ import annotations

from collections.abc import Iterable

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.layout import LANGUAGE, PROJECTION, VISION, Grid, layer_part, part_names

# Transformer Engine's, for FP8: None in a converted file. Its attention may have one too, depending
# on its version: it is left out, as by internvit_converter.py. LLaVAModel's loading hook passes
# over one that is missing; a plain model without Transformer Engine would refuse one too many.
EXTRA_STATE = "_extra_state"
LINEAR_LAYERS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "output_layer")
# The decoder's norms in the layer spec without Transformer Engine, and with it.
LOCAL_NAMES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
# Of tied embeddings: on a pipeline the last stage has its copy of the first one's matrix, which
# Megatron-core calls like a head of its own (LanguageModule.setup_embeddings_and_output_layer).
EMBEDDING, TABLE, TIED_HEAD = (
    f"{LANGUAGE}.embedding",
    "word_embeddings.weight",
    "output_layer.weight",
)
HEAD = {
    "final_layernorm.weight": "decoder.final_layernorm.weight",
    "output_layer.weight": "output_layer.weight",
}


def stage_parts(architecture: Architecture, grid: Grid, stage: int) -> list[tuple[str, int]]:
    """Parts of pipeline stage ``stage``, each with the number that a layer has on that stage."""
    first = sum(grid.layers_per_stage[:stage])
    own = {layer_part(LANGUAGE, first + n): n for n in range(_layers(grid, stage))}
    parts = []
    for part in part_names(architecture):
        half, _, kind = part.partition(".")
        if half != LANGUAGE:
            number = int(kind.removeprefix("layer.")) if kind.startswith("layer") else 0
            if stage == 0:
                parts.append((part, number))
        elif part in own:
            parts.append((part, own[part]))
        elif (kind == "embedding" and stage == 0) or (
            kind == "head" and stage + 1 == grid.pipeline
        ):
            parts.append((part, 0))
    return parts


def megatron_name(architecture: Architecture, part: str, number: int, name: str) -> str:
    """Megatron's name for tensor ``name`` of ``part``, a layer having ``number`` on its stage."""
    half, _, kind = part.partition(".")
    prefix = f"{half}." if architecture.vision and architecture.language else ""
    if kind.startswith("layer"):
        return f"{prefix}decoder.layers.{number}.{name}"
    if half == LANGUAGE:
        return prefix + (f"embedding.{name}" if kind == "embedding" else HEAD[name])
    return prefix + name


def repeats_embedding(architecture: Architecture, grid: Grid, stage: int) -> bool:
    """Whether pipeline stage ``stage`` holds a copy of the first one's embedding as TIED_HEAD."""
    decoder = architecture.language
    return bool(decoder and decoder.tied_embeddings and 0 < stage == grid.pipeline - 1)


def full_name(architecture: Architecture, part: str, number: int, name: str) -> str:
    """The name in a combined file, also where the file holds one half alone."""
    short = megatron_name(architecture, part, number, name)
    half = part.partition(".")[0]
    return short if architecture.vision and architecture.language else f"{half}.{short}"


def extra_states(names: Iterable[str]) -> list[str]:
    """The names under which Transformer Engine's linear layers among ``names`` keep extra state."""
    owners = {name.rpartition(".")[0] for name in names}
    return sorted(
        f"{owner}.{EXTRA_STATE}" for owner in owners if owner.split(".")[-1] in LINEAR_LAYERS
    )


def with_prefix(names: Iterable[str]) -> dict[str, str]:
    """``names`` of a file as a combined file has them: by the prefixed name, without extra state.

    The decoder's norms get the names that they have with Transformer Engine.
    """
    names = [name for name in names if not name.endswith(EXTRA_STATE)]
    prefixes = (f"{LANGUAGE}.", f"{VISION}.", f"{PROJECTION}.")
    prefix = ""
    if not any(name.startswith(prefixes) for name in names):
        prefix = f"{VISION}." if "class_token" in names else f"{LANGUAGE}."
    whole = {}
    for name in names:
        full = prefix + name
        if full.startswith(f"{LANGUAGE}.decoder.layers."):
            head, tail = ".".join(full.split(".")[:4]), ".".join(full.split(".")[4:])
            full = f"{head}.{LOCAL_NAMES.get(tail, tail)}"
        whole[full] = name
    return whole


def _layers(grid: Grid, stage: int) -> int:
    return grid.layers_per_stage[stage] if grid.layers_per_stage else 0
