"""What one rank of a training run holds in its device's memory, in bytes.

Parameters, gradients and optimizer state are counted on the model itself, built and sharded by the
engine's own code on the meta device. Activations are a formula: that of Korthikanti et al. 2022
("Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198, section 4.1),
which adds up what autograd keeps of each operation, worked out again for transformers' Llama and
Qwen2 (RMSNorm in fp32, grouped keys, gated MLP, no dropout) and for attention without S^2 scores.
With sequence parallelism what lies between the blocks is divided by the tensor ranks, but for the
blocks' inputs, which autograd keeps gathered (Megatron-LM gathers them again). The allocator's
fragments, the CUDA context and NCCL's buffers are not in it.

Symbols: w bytes of a number in the computation's dtype; h hidden size, f FFN size, a heads, k
channels of all keys; t tensor-parallel ranks; S tokens a row; P pipeline stages.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
)
from nvlm.checkpoint.parts.adapter import DOWN, adapter_shapes, adapter_split
from nvlm.model.nvlm import NVLM
from nvlm.train.params import TrainParams

FP32 = 4  # bytes
MOMENTS = 2 * FP32  # of AdamW, a parameter
# Of the loss, a logit of this rank: fp32 logits, the same with padded rows masked, logarithms of
# probabilities and their gradient (nvlm.parallel.loss), beside the head's own output.
LOSS_BYTES = 4 * FP32


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """What of a rank's memory depends on the model alone."""

    frozen: int  # in the computation's dtype, whole
    parameters: int  # fp32 masters of what is trained, this rank's shard
    gradients: int  # the same in fp32, reduced, before the optimizer's step
    optimizer: int  # AdamW's moments and step counts
    largest: int  # numbers in the largest of these gradients


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank. The three that exclude one another in time are told apart by ``peak``."""

    parameters: int  # fp32 masters, sharded
    frozen: int
    gradients: int  # sharded, at the optimizer's step
    optimizer: int
    gathered: int  # parameters that FSDP2 has gathered, in the computation's dtype
    accumulated: int  # gradients over micro-batches, not yet reduced over the shards, fp32
    batch: int  # tokens, pixels and tile features of all the replica's rows
    tower: int  # of the vision tower's forward pass
    activations: int  # of all micro-batches under way
    logits: int
    clipping: int  # of the gradient norm, in fp64

    @property
    def peak(self) -> int:
        """The most that is held at once: tiles are encoded, then layers run, then AdamW steps."""
        always = self.parameters + self.frozen + self.optimizer + self.batch
        layers = self.gathered + self.accumulated + self.activations + self.logits
        return always + max(self.tower, layers, self.gradients + self.clipping)


def model_state(model: nn.Module, compute: torch.dtype) -> ModelState:
    """The state of ``model``, whose trained parameters require a gradient; meta tensors will do."""
    frozen = trained = tensors = largest = 0
    for parameter in model.parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if parameter.requires_grad:
            trained += local.numel()
            tensors += 1
            largest = max(largest, local.numel())
        else:
            frozen += local.numel()
    return ModelState(
        frozen=frozen * compute.itemsize,
        parameters=trained * FP32,
        gradients=trained * FP32,
        optimizer=trained * MOMENTS + tensors * FP32,
        largest=largest,
    )


def unit_sizes(model: NVLM) -> list[int]:
    """Numbers in each unit that FSDP2 gathers at once, of this tensor-parallel rank: ``model``
    before it is sharded over data ranks."""
    decoder = model.language_model
    ends = [decoder.model.embed_tokens, decoder.lm_head]
    if None not in ends and ends[0].weight is ends[1].weight:
        ends.pop()  # tied: one matrix
    sizes = []
    for module in (model.vision_projection, *ends, *decoder.model.layers):
        trained = [p for p in module.parameters() if p.requires_grad] if module is not None else []
        local = [p.to_local() if isinstance(p, DTensor) else p for p in trained]
        sizes.append(sum(tensor.numel() for tensor in local))
    if model.adapter is not None:  # no layer is a unit: what they train is the root's
        first = len(sizes) - len(decoder.model.layers)
        sizes = [*sizes[:first], sum(sizes[first:])]
    return sorted((size for size in sizes if size), reverse=True)


def rank_memory(
    architecture: Architecture,
    params: TrainParams,
    state: ModelState,
    units: list[int],
    *,
    stage: int,
    layers: int,
    padded_vocabulary: int,
    tiles: int,
) -> RankMemory:
    """A rank of pipeline ``stage`` with ``layers`` decoder layers; ``tiles``: most tiles a row."""
    assert architecture.vision and architecture.language
    language, grid, width = architecture.language, params.grid, _width(params)
    is_last = stage == grid.pipeline - 1
    rows = params.global_batch // grid.data
    micro_batches = rows // params.micro_batch
    tokens = params.micro_batch * params.data.sequence_length
    fully_sharded = grid.data > 1 or params.dtype != "float32"
    gathered = 0
    if fully_sharded:
        # A pipeline's stage is gathered as a whole from its first backward pass to its last
        # (torch.distributed.pipelining); otherwise a unit is, and the next one is on its way.
        stays = grid.pipeline > 1 or params.keep_gathered
        gathered = width * (sum(units) if stays else sum(units[:2]))
        accumulated = FP32 * (sum(units) if micro_batches > 1 else sum(units[:2]))
    elif micro_batches > 1:
        accumulated = state.gradients  # in place, where AdamW reads them
    else:
        accumulated = 0
    # Of one micro-batch, between layers and between stages.
    hidden = width * language.hidden_size * tokens // _sequence_ranks(params)
    # 1F1B: stage p has P - p micro-batches under way (Narayanan et al. 2021, section 2.2.1).
    under_way = min(grid.pipeline - stage, micro_batches)
    whole = layer_activations(language, params)
    recomputed = -(-layers // params.recompute_every) if params.recompute_every else 0
    kept = recomputed * hidden + (layers - recomputed) * whole
    if _masked(params):
        kept += width * tokens * params.data.sequence_length  # the mask, which all layers share
    again = whole if recomputed else 0
    if stage == 0:
        kept += projector_activations(architecture, params, tiles)
    if is_last:
        kept += norm_activations(language, params) * tokens
    if grid.pipeline > 1:
        kept += hidden  # what it sends on, kept for the backward pass
        again += hidden * micro_batches * ((stage > 0) + (not is_last))  # to receive into
    # Every position an answer: a text of one turn comes near it.
    head = ((width + LOSS_BYTES) * padded_vocabulary // grid.tensor) * tokens
    head += width * language.hidden_size * tokens
    return RankMemory(
        parameters=state.parameters,
        frozen=state.frozen,
        gradients=state.gradients,
        optimizer=state.optimizer,
        gathered=gathered,
        accumulated=accumulated,
        batch=_batch(architecture, params, rows, tiles, width, is_first=stage == 0),
        tower=_tower(architecture, params, rows * tiles, width, is_first=stage == 0),
        activations=under_way * kept + again,
        logits=head if is_last else 0,
        clipping=8 * state.largest,
    )


def norm_activations(
    language: LanguageArchitecture, params: TrainParams, readers: Collection[str] = ()
) -> int:
    """Bytes a token of an RMSNorm and of what reads it: 4 h + 4 + 2 w h.

    Its input in fp32, one inverse root, the normalised input, and the output; the last two are for
    the weights' gradients, and are not kept where the decoder is frozen, but the output for an
    adapter of ``readers``. Sequence parallelism divides all but the output, which is gathered
    before it is read.
    """
    width, ranks = _width(params) * language.hidden_size, _sequence_ranks(params)
    trained = _trains_decoder(params)
    normalised = width if trained else 0
    output = width if trained or _reads(params, readers) else 0
    return (FP32 * (language.hidden_size + 1) + normalised) // ranks + output


def layer_activations(language: LanguageArchitecture, params: TrainParams) -> int:
    """Bytes that autograd keeps of one decoder layer and micro-batch.

    A token: both norms; queries and attention's output 2 w h / t, keys and values 2 w k / t (2 w h
    / t where they are repeated for their queries, which a mask asks for), logarithms 4 a / t; gate,
    its SiLU, up and, where its reader is trained or adapted, their product 4 w f / t; dropout 2
    h; what an adapter keeps.
    """
    width, tensor = _width(params), params.grid.tensor
    hidden = language.hidden_size
    repeated = _masked(params) and language.query_groups > tensor
    keys = hidden if repeated else language.query_groups * language.head_size
    attention = 2 * width * (hidden + keys) // tensor
    product_kept = _trains_decoder(params) or _reads(params, ["down_proj"])
    inner = (4 if product_kept else 3) * width * language.ffn_hidden_size // tensor
    dropout = 2 * hidden if params.hidden_dropout else 0
    norms = norm_activations(language, params, ["q_proj", "k_proj", "v_proj"])
    norms += norm_activations(language, params, ["gate_proj", "up_proj"])
    token = norms + attention + FP32 * language.heads // tensor + inner + dropout
    token += adapter_activations(language, params)
    return token * params.micro_batch * params.data.sequence_length


def adapter_activations(language: LanguageArchitecture, params: TrainParams) -> int:
    """Bytes a token of an adapter: w r between the two matrices of each target, and with dropout
    (w + 1) of each of its inputs, which are kept as they were dropped, and the mask."""
    if params.lora is None:
        return 0
    width, token = _width(params), 0
    for name, (rows, columns) in adapter_shapes(language, params.lora.adapter).items():
        if name.endswith(DOWN):
            inputs = columns // params.grid.tensor if adapter_split(name) else columns
            token += width * rows + ((width + 1) * inputs if params.lora.dropout else 0)
    return token


def projector_activations(architecture: Architecture, params: TrainParams, tiles: int) -> int:
    """Bytes that autograd keeps of the projector for rows of ``tiles`` tiles.

    A visual token: LayerNorm's output w c, both sides of GELU 2 w f / t.
    """
    assert architecture.vision and architecture.language
    inner = architecture.language.ffn_hidden_size // params.grid.tensor
    token = _width(params) * (architecture.vision.feature_size + 2 * inner)
    return token * params.micro_batch * tiles * architecture.vision.tokens_per_tile


def _batch(
    architecture: Architecture,
    params: TrainParams,
    rows: int,
    tiles: int,
    width: int,
    *,
    is_first: bool,
) -> int:
    """The replica's rows: five int64 a token, pixels, and features as gathered and by row."""
    assert architecture.vision
    tokens = 5 * 8 * rows * params.data.sequence_length
    pixels = rows * tiles * 3 * architecture.vision.image_size**2
    features = rows * tiles * architecture.vision.tokens_per_tile * architecture.vision.feature_size
    return tokens + pixels + (2 * width * features if is_first else 0)


def _tower(
    architecture: Architecture, params: TrainParams, tiles: int, width: int, *, is_first: bool
) -> int:
    """The widest place of a layer without a graph: residual, norm, and both sides of GELU.

    All ranks of a replica encode. Those of later stages hold the features for a moment only, once
    their own part of them is done.
    """
    vision = architecture.vision
    assert vision
    chunk = min(params.tile_chunk, -(-tiles // (params.grid.tensor * params.grid.pipeline)))
    token = 2 * width * (vision.hidden_size + vision.ffn_hidden_size)
    layer = chunk * (vision.patches + 1) * token
    gathered = 0 if is_first else width * tiles * vision.tokens_per_tile * vision.feature_size
    return max(layer, gathered)


def _width(params: TrainParams) -> int:
    compute: torch.dtype = getattr(torch, params.dtype)
    return compute.itemsize


def _sequence_ranks(params: TrainParams) -> int:
    """Ranks that share what lies between the blocks of a decoder layer."""
    return params.grid.tensor if params.sequence_parallel else 1


def _masked(params: TrainParams) -> bool:
    """Whether attention needs a mask on a GPU (``nvlm.train.decoder.uses_varlen``)."""
    return params.data.packing and (params.dtype == "float32" or params.attention_dropout > 0)


def _trains_decoder(params: TrainParams) -> bool:
    return "language_model" in params.trained


def _reads(params: TrainParams, targets: Collection[str]) -> bool:
    """Whether an adapter reads what one of the layers ``targets`` reads, as it is."""
    lora = params.lora
    return lora is not None and not lora.dropout and not set(targets).isdisjoint(lora.targets)
