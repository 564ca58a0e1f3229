"""The language stand-ins: a Yi-like Llama and a Qwen2, trained to talk about described pictures.

Both keep the traits of their models that conversion has to get right: grouped queries, untied
embeddings, Yi's BOS; Qwen2's bias of queries, keys and values, and its embedding with more rows
than the tokenizer has entries, by a number that tensor parallelism makes Megatron pad.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerFast

from nvlm.checkpoint.format.architecture import LanguageArchitecture
from nvlm.errors import UserError
from nvlm.model.language import Decoder, Stage, build_decoder
from nvlm.model.prompts import render, tile_tags
from nvlm.model.tokens import IGNORED, encode_conversation
from nvlm.standin.dialogs import Dialog, DialogWriter
from nvlm.standin.tokenizer import train_tokenizer
from nvlm.standin.training import Optimizer, Training, progress, reproducible

TOKENIZER_DIALOGS = 1000  # from which a tokenizer learns its vocabulary
POOL = 64  # batches drawn at once, so that dialogs of one length go together


@dataclass(frozen=True, kw_only=True)
class LanguageStandin:
    """Parameters of a stage."""

    build: bool  # False where the real weights are downloaded
    tokenizer_size: int = 0  # entries, at most the architecture's vocabulary
    shard_size: str = "5GB"  # larger models are written as several files and an index
    architecture: LanguageArchitecture | None = None
    training: Training | None = None

    def __post_init__(self) -> None:
        if self.build and not (self.architecture and self.training):
            raise ValueError("build: needs the sections architecture and training beside it")


def learn_tokenizer(architecture: LanguageArchitecture, size: int) -> PreTrainedTokenizerFast:
    """The stand-in's own tokenizer, from the text that the model will be trained on."""
    if size > architecture.vocabulary:
        raise UserError(
            f"tokenizer_size {size} exceeds the {architecture.vocabulary} rows of the embedding"
        )
    writer = DialogWriter(seed=0)
    dialogs = (writer.draw() for _ in range(TOKENIZER_DIALOGS))
    texts = (text for dialog in dialogs for text in _texts(dialog, architecture.family))
    return train_tokenizer(architecture.family, texts, size)


def _texts(dialog: Dialog, family: str) -> list[str]:
    """The pieces of ``dialog`` that are tokenised, each apart from its neighbours."""
    segments = render(dialog.conversation, dialog.template)
    texts = [segment.text for segment in segments if segment.kind == "text"]
    return [*texts, *tile_tags(family, len(dialog.tiles)), *dialog.tiles[0]]


def train_language(
    architecture: LanguageArchitecture, tokenizer: PreTrainedTokenizerFast, training: Training
) -> Decoder:
    """Build and train the decoder on training text only; the loss counts answers."""
    reproducible(training.seed)
    whole = Stage(first=0, last=architecture.layers)
    decoder = build_decoder(architecture, architecture.vocabulary, whole)
    optimizer = Optimizer(decoder.model.layers, list(decoder.parameters()), training)
    batches = Batches(architecture.family, tokenizer, training)
    for _ in progress(training.steps, f"{architecture.family} stand-in"):
        input_ids, labels = batches.draw()
        logits = decoder(input_ids=input_ids, use_cache=False).logits
        optimizer.step(cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED))
    return decoder.eval()


class Batches:
    """Encoded dialogs in batches of like length, which wastes little on padding."""

    def __init__(self, family: str, tokenizer: PreTrainedTokenizerFast, training: Training) -> None:
        self.family = family
        self.tokenizer = tokenizer
        self.size = training.batch
        self.writer = DialogWriter(seed=training.seed)
        self.words: dict[str, int] = {}
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def draw(self) -> tuple[Tensor, Tensor]:
        """Token ids and shifted labels, int64 (B, S); padding comes last and is not counted."""
        if not self.waiting:
            self.waiting = self._pool()
        return self.waiting.pop()

    def _pool(self) -> list[tuple[Tensor, Tensor]]:
        encoded = [self.encode(self.writer.draw()) for _ in range(self.size * POOL)]
        encoded.sort(key=lambda dialog: len(dialog[0]))
        batches = [encoded[at : at + self.size] for at in range(0, len(encoded), self.size)]
        order = self.writer.rng.permutation(len(batches))
        return [collate(batches[position]) for position in order]

    def encode(self, dialog: Dialog) -> tuple[Tensor, Tensor]:
        """Token ids and shifted labels, int64 (S,), as the recipe encodes; words for tokens."""
        encoded = encode_conversation(
            dialog.conversation,
            self.tokenizer,
            template=dialog.template,
            family=self.family,
            tiles_per_image=[len(dialog.tiles)],
            tokens_per_tile=len(dialog.tiles[0]),
            tile_tags=True,
        )
        words = [self._word(word) for tile in dialog.tiles for word in tile]
        input_ids = torch.from_numpy(encoded.input_ids)
        input_ids[torch.from_numpy(encoded.visual_index >= 0)] = torch.tensor(words)
        return input_ids, torch.from_numpy(encoded.labels)

    def _word(self, word: str) -> int:
        """The id of ``word``: its first token, should a small vocabulary have cut it."""
        if word not in self.words:
            self.words[word] = self.tokenizer.encode(word, add_special_tokens=False)[0]
        return self.words[word]


def collate(dialogs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pad to the longest, at the end: causal attention then needs no mask."""
    ids = pad_sequence([ids for ids, _ in dialogs], batch_first=True)
    labels = pad_sequence([labels for _, labels in dialogs], True, padding_value=IGNORED)
    return ids, labels


def write_language(
    directory: Path, decoder: Decoder, tokenizer: PreTrainedTokenizerFast, shard_size: str
) -> None:
    """Write configuration, weights and tokenizer as transformers does."""
    end = tokenizer.eos_token_id
    decoder.config.bos_token_id, decoder.config.eos_token_id = tokenizer.bos_token_id, end
    decoder.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    decoder.save_pretrained(directory, max_shard_size=shard_size)
    tokenizer.save_pretrained(directory)
