"""What benchmarks/gpu.py compares: the engine's step, and a plain transformers loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.data.loading.batch import EncodedSample, collate
from nvlm.model.flops import step_flops
from nvlm.model.language import Stage, reset_rotary
from nvlm.model.nvlm import NVLM
from nvlm.model.tokens import IGNORED, TEXT, EncodedConversation
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.sequence import reduce_shared
from nvlm.parallel.tensor import apply_tensor_parallel
from nvlm.train.optimizer import build_optimizer, clip_gradients
from nvlm.train.params import TrainParams
from nvlm.train.trainer import Trainer

TILES = (7, 4)  # of the two samples of a row: two thirds and one third of its tokens
STD = 0.02  # of random weights
Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both ways train on."""

    params: TrainParams
    architecture: Architecture
    samples: list[list[EncodedSample]]  # by row
    mesh: Mesh

    @property
    def flops(self) -> float:
        """Model FLOPs of a step: of the samples themselves, each blind to the others."""
        return sum(
            step_flops(
                self.architecture,
                trainable=self.params.trainable,
                lengths=[len(sample)],
                tiles=len(sample.tiles),
                answers=int((sample.conversation.labels != IGNORED).sum()),
            )
            for row in self.samples
            for sample in row
        )


def make_row(params: TrainParams, architecture: Architecture, number: int) -> list[EncodedSample]:
    """Two samples that fill a row: visual tokens, a question, and an answer of a quarter of it."""
    assert architecture.vision and architecture.language
    random = np.random.default_rng(number)
    length, side = params.data.sequence_length, architecture.vision.image_size
    first = length * 2 // 3
    samples = []
    for tiles, tokens in zip(TILES, (first, length - first), strict=True):
        visual = tiles * architecture.vision.tokens_per_tile
        ids = random.integers(architecture.language.vocabulary, size=tokens)
        ids[:visual] = 0
        index = np.full(tokens, TEXT)
        index[:visual] = np.arange(visual)
        labels = np.full(tokens, IGNORED)
        answer = (tokens - visual) // 4
        labels[-answer:] = random.integers(architecture.language.vocabulary, size=answer)
        conversation = EncodedConversation(input_ids=ids, labels=labels, visual_index=index)
        pixels = random.integers(256, size=(tiles, side, side, 3), dtype=np.uint8)
        samples.append(EncodedSample(key=f"{number}", conversation=conversation, tiles=pixels))
    return samples


def random_model(setting: Setting) -> NVLM:
    """Random weights where ``load_model`` reads them: fp32 masters, a tower in the dtype."""
    params, architecture, device = setting.params, setting.architecture, setting.mesh.device
    assert architecture.language
    torch.manual_seed(params.seed)
    stage = Stage(first=0, last=architecture.language.layers)
    with torch.device("meta"):
        model = NVLM(architecture, architecture.language.vocabulary, stage)
    apply_tensor_parallel(model, setting.mesh.tensor)
    model.vision_model.to(getattr(torch, params.dtype))
    model.to_empty(device=device)
    reset_rotary(model.language_model, device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, STD)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in params.trainable)
    return model.eval()


def engine(setting: Setting) -> Step:
    """The engine's own trainer on packed rows, with random weights for a checkpoint's."""
    with patch("nvlm.train.trainer.load_model", return_value=random_model(setting)):
        trainer = Trainer(setting.params, Path(), setting.mesh)
    batch = collate(setting.samples, setting.params.data.sequence_length)
    batch = batch.to(setting.mesh.device)
    return lambda: trainer.step(1, batch)


def one_rank(setting: Setting) -> Step:
    """A tensor-parallel rank's step among ranks that are not there: their parts of the sums are
    missing, so that losses mean nothing and are not looked at; shapes and work are the true ones.
    """
    with patch("nvlm.train.trainer.load_model", return_value=random_model(setting)):
        trainer = Trainer(setting.params, Path(), setting.mesh)
    batch = collate(setting.samples, setting.params.data.sequence_length)
    batch = batch.to(setting.mesh.device)
    model, mesh = trainer.model, setting.mesh

    def step() -> None:
        trainer.runner.run(batch, 1.0)
        if setting.params.sequence_parallel:
            reduce_shared(model, mesh.tensor)
        clip_gradients(model.parameters(), setting.params.clip_grad, mesh)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)

    return step


def with_a_mask(setting: Setting) -> Step:
    """``one_rank``, attention by a mask as on a CPU."""
    with patch("nvlm.train.decoder.uses_varlen", return_value=False):
        return one_rank(setting)


def plain(setting: Setting) -> Step:
    """A transformers loop: the samples of a row at once, padded; accumulation, clipping, AdamW."""
    torch.use_deterministic_algorithms(False)
    model, params, device = random_model(setting), setting.params, setting.mesh.device
    if params.recompute_every:
        model.language_model.gradient_checkpointing_enable()
    model.language_model.train()
    optimizer = build_optimizer(model, params)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = [padded(row, device) for row in setting.samples]
    answers = sum(int(batch["labels"].ne(IGNORED).sum()) for batch in batches)
    compute = getattr(torch, params.dtype)

    def step() -> None:
        for batch in batches:
            with torch.autocast(device.type, compute, enabled=compute != torch.float32):
                loss = plain_loss(model, batch)
            (loss / answers).backward()
        torch.nn.utils.clip_grad_norm_(trained, params.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def padded(samples: Sequence[EncodedSample], device: torch.device) -> dict[str, Tensor]:
    """A batch of whole samples, padded to the longest."""

    def stack(name: str, value: float) -> Tensor:
        rows = [torch.from_numpy(getattr(sample.conversation, name)) for sample in samples]
        return pad_sequence(rows, batch_first=True, padding_value=value).to(device)

    lengths = torch.tensor([len(sample) for sample in samples], device=device)
    visual_index = stack("visual_index", TEXT)
    places = torch.arange(visual_index.shape[1], device=device)
    tiles = np.concatenate([sample.tiles for sample in samples]).transpose(0, 3, 1, 2)
    return {
        "input_ids": stack("input_ids", 0),
        "labels": stack("labels", IGNORED),
        "is_visual": visual_index != TEXT,
        "attention_mask": (places < lengths[:, None]).long(),
        "tiles": torch.from_numpy(np.ascontiguousarray(tiles)).to(device),
    }


def plain_loss(model: NVLM, batch: dict[str, Tensor]) -> Tensor:
    """Summed loss of a padded batch, all of its logits computed."""
    decoder = model.language_model
    assert model.vision_projection is not None
    visual = model.vision_projection(model.encode_tiles(batch["tiles"]))
    embeds = decoder.get_input_embeddings()(batch["input_ids"]).to(visual.dtype)
    embeds = embeds.masked_scatter(batch["is_visual"][..., None], visual)
    output = decoder(inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False)
    return torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1).float(),
        batch["labels"].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
