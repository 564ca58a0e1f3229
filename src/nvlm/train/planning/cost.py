"""How long a run takes and what it costs, by counted work and stated rates.

What is counted: products, attention and bytes of a rank, what it sends and receives, how often a
pipeline waits. What is assumed is in ``Rates``, each value with its source; ``plan --rate`` sets
others. Nothing of it was measured on a cluster: take it for the order of grids and for what holds
a run back, and put in what your own cards reach.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from nvlm.checkpoint.format.architecture import Architecture, LanguageArchitecture
from nvlm.checkpoint.parts.adapter import adapter_shapes
from nvlm.model.flops import (
    attention_flops,
    decoder_flops,
    head_flops,
    projector_flops,
    step_flops,
    tower_flops,
)
from nvlm.train.params import TrainParams

BF16, FP32 = 2, 4  # bytes
# Bytes that a layer's elementwise kernels move for a number, in transformers' own code: of a norm
# (in fp32, six kernels), of a residual sum, of SiLU and its product.
NORM_BYTES, RESIDUAL_BYTES, GATE_BYTES = 36, 6, 10
BACKWARD_DISPATCH = 1.4  # times the forward pass's
ADAMW_BYTES = 30  # a parameter: gradient, master and moments read, the last two written
# Questions of the full scale's benchmarks (splits as in conf/eval): their own counts.
QUESTIONS = {
    "captioning": 5000,
    "Flickr30k": 1000,
    "NoCaps": 4500,
    "TextVQA": 5000,
    "VQAv2": 214354,
    "OK-VQA": 5046,
    "ChartQA": 2500,
    "DocVQA": 5349,
    "InfoVQA": 2801,
    "AI2D": 3088,
    "AI2D_no_mask": 3088,
    "MMMU": 900,
    "MathVista": 1000,
    "OCRBench": 1000,
    "RealWorldQA": 765,
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU: the maker's data sheet."""

    memory_gib: float
    flops: float  # dense bf16, a second
    bandwidth: float  # bytes a second of its memory


CARDS = {
    "a100": Card(memory_gib=80, flops=312e12, bandwidth=2.0e12),
    "h100": Card(memory_gib=80, flops=989e12, bandwidth=3.35e12),
    "h200": Card(memory_gib=141, flops=989e12, bandwidth=4.8e12),
    "b200": Card(memory_gib=180, flops=2250e12, bandwidth=7.7e12),
    "rtx4090": Card(memory_gib=24, flops=165e12, bandwidth=1.008e12),
}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What is assumed of a cluster."""

    products: float = 0.70  # of a card's FLOPs, in large bf16 products (cuBLAS on an H100)
    attention: float = 0.45  # of a card's FLOPs, in the flash kernel with its backward pass
    memory: float = 0.75  # of a card's bandwidth, in elementwise kernels
    node: float = 360e9  # bytes a second and direction of a card within a node (NVLink 4: 450e9)
    network: float = 45e9  # the same between nodes (400 Gb/s a card)
    ranks_a_node: float = 8
    # Seconds of the CPU for a layer forward, eager DTensors: half of what a core of the machine in
    # benchmarks/README.md takes.
    dispatch: float = 1.8e-3
    exposed: float = 0.5  # share of FSDP2's transfers that nothing hides, without a pipeline
    tiles: float = 0.6  # of the most that a row can have, in the mean
    answers: float = 0.15  # of a row's tokens
    answer_tokens: float = 8  # of a generated answer, in the mean

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name}: {getattr(self, field.name)} should be more than 0")


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of an optimizer step, by what they go to."""

    products: float
    elementwise: float
    tensor_parallel: float
    dispatch: float  # the CPU, where it is slower than what it starts
    bubble: float  # of the pipeline
    tower: float
    data_parallel: float
    optimizer: float
    model_flops: float  # of the whole grid

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(
            getattr(self, field.name) for field in fields(self) if field.name != "model_flops"
        )

    def utilization(self, card: Card, ranks: int) -> float:
        """Of the cards' dense bf16 peak."""
        return self.model_flops / (self.seconds * card.flops * ranks)


def step_time(
    params: TrainParams, architecture: Architecture, card: Card, rates: Rates, tiles: int
) -> StepTime:
    """A step of ``params`` on its grid; ``tiles``: the most that a row can have.

    Layers are shared out evenly over the stages; the slower of the two ends counts.
    """
    assert architecture.language and architecture.vision
    grid, length = params.grid, params.data.sequence_length
    rows = params.global_batch // grid.data
    micro_batches = rows // params.micro_batch
    layers = architecture.language.layers / grid.pipeline
    again = layers / params.recompute_every if params.recompute_every else 0
    layer = _layer(params, architecture.language, card, rates)
    work = layers * (layer.forward + layer.backward) + again * layer.forward
    work += _ends(params, architecture, card, rates, tiles)
    moved = (3 * layers + again) * layer.elementwise
    sent = (2 * layers + again) * layer.exchanged
    forward = layer.forward + layer.elementwise + layer.exchanged
    backward = layer.backward + 2 * layer.elementwise + layer.exchanged
    late = (layers + again) * max(0.0, rates.dispatch - forward)
    late += layers * max(0.0, BACKWARD_DISPATCH * rates.dispatch - backward)
    shown = int(rates.tiles * tiles * rows)
    counted = step_flops(
        architecture,
        trainable=params.trained,
        lengths=[length] * rows,
        tiles=shown,
        answers=int(rates.answers * rows * length),
    )
    encoders = grid.tensor * grid.pipeline
    return StepTime(
        products=micro_batches * work,
        elementwise=micro_batches * moved,
        tensor_parallel=micro_batches * sent,
        dispatch=micro_batches * late,
        bubble=(grid.pipeline - 1) * (work + moved + sent + late),
        tower=tower_flops(architecture.vision, shown) / encoders / (card.flops * rates.products),
        data_parallel=_data_parallel(params, architecture.language, rates, layers, micro_batches),
        optimizer=ADAMW_BYTES * _trained(params, architecture) / grid.processes / card.bandwidth,
        model_flops=grid.data * counted,
    )


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Seconds of a decoder layer and micro-batch on a rank."""

    forward: float  # products
    backward: float
    elementwise: float  # forward; backward moves twice as much
    exchanged: float  # with the other tensor ranks, in each direction


def _layer(params: TrainParams, language: LanguageArchitecture, card: Card, rates: Rates) -> _Layer:
    tensor, length = params.grid.tensor, params.data.sequence_length
    tokens = params.micro_batch * length
    pairs = params.micro_batch * length * (length + 1) // 2
    dense = decoder_flops(language, tokens) / language.layers / tensor
    dense = dense / (card.flops * rates.products)
    seen = attention_flops(language, pairs) / language.layers / tensor
    seen = seen / (card.flops * rates.attention)
    wire = rates.node if tensor <= rates.ranks_a_node else rates.network
    # Two all-reduces, or as many pairs of all-gather and reduce-scatter.
    exchanged = 4 * BF16 * language.hidden_size * tokens * (tensor - 1) / tensor / wire
    return _Layer(
        forward=dense + seen,
        backward=(2 if "language_model" in params.trained else 1) * dense + 2 * seen,
        elementwise=_elementwise(language, params, tokens) / (card.bandwidth * rates.memory),
        exchanged=exchanged,
    )


def _ends(
    params: TrainParams, architecture: Architecture, card: Card, rates: Rates, tiles: int
) -> float:
    """Seconds of projector and head on a micro-batch, with their backward passes."""
    assert architecture.language and architecture.vision
    tokens = params.micro_batch * params.data.sequence_length
    visual = int(rates.tiles * tiles * params.micro_batch) * architecture.vision.tokens_per_tile
    head = head_flops(architecture.language, int(rates.answers * tokens))
    projector = projector_flops(architecture, visual)
    both = max(head, projector) if params.grid.pipeline > 1 else head + projector
    return 3 * both / params.grid.tensor / (card.flops * rates.products)


def evaluation_hours(
    architecture: Architecture,
    card: Card,
    rates: Rates,
    *,
    tensor: int,
    batch: int,
    tasks: Iterable[str] = tuple(QUESTIONS),
) -> float:
    """Hours of one checkpoint on the benchmarks ``tasks``, on ``tensor`` cards, by our own engine.

    A token of a batch costs the reading of the weights, or their dispatch, whichever is slower.
    """
    assert architecture.language and architecture.vision
    language = architecture.language
    prompt = int(4 * architecture.vision.tokens_per_tile + 60)
    flops = decoder_flops(language, prompt) + tower_flops(architecture.vision, 4)
    reading = flops / tensor / (card.flops * rates.products)
    weights = BF16 * decoder_flops(language, 1) / 2 / tensor / (card.bandwidth * rates.memory)
    token = max(weights, language.layers * rates.dispatch)
    questions = sum(QUESTIONS[task] for task in tasks)
    return questions * (reading + rates.answer_tokens * token / batch) / 3600


def _elementwise(language: LanguageArchitecture, params: TrainParams, tokens: int) -> float:
    """Bytes that norms, residual sums and the gate of a layer move in a forward pass."""
    ranks = params.grid.tensor if params.sequence_parallel else 1
    between = 2 * (NORM_BYTES + RESIDUAL_BYTES) * language.hidden_size / ranks
    return tokens * (between + GATE_BYTES * language.ffn_hidden_size / params.grid.tensor)


def _data_parallel(
    params: TrainParams,
    language: LanguageArchitecture,
    rates: Rates,
    layers: float,
    micro_batches: int,
) -> float:
    """Seconds that gathering parameters and reducing gradients add."""
    grid = params.grid
    if grid.shard == 1 or "language_model" not in params.trained:
        return 0.0
    held = decoder_flops(language, 1) / 2 / language.layers * layers / grid.tensor
    stays = params.keep_gathered or grid.pipeline > 1
    gathers = 1 if stays else 2 * micro_batches
    transferred = (BF16 * gathers + FP32) * held * (grid.shard - 1) / grid.shard
    wire = rates.node if grid.shard * grid.tensor <= rates.ranks_a_node else rates.network
    return transferred / wire * (1.0 if grid.pipeline > 1 else rates.exposed)


def _trained(params: TrainParams, architecture: Architecture) -> float:
    assert architecture.language and architecture.vision
    language = architecture.language
    projector = projector_flops(architecture, 1) / 2
    if params.lora is not None:
        shapes = adapter_shapes(language, params.lora.adapter).values()
        decoder = float(language.layers * sum(rows * columns for rows, columns in shapes))
    else:
        decoder = decoder_flops(language, 1) / 2 + 2 * language.vocabulary * language.hidden_size
    return projector + (decoder if "language_model" in params.trainable else 0)
