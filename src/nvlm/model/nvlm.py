"""NVLM-D: a decoder that reads projected image tiles among its text (paper section 4.1).

The whole model, or the part of it that one pipeline stage holds. Shapes: B rows, S positions,
N tiles, V visual tokens a tile, T tiles of the row that has most, H decoder hidden size,
C channels of a visual token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from nvlm.checkpoint.format.adapter import Adapter
from nvlm.checkpoint.format.architecture import Architecture
from nvlm.model.attention import VARLEN, packed_mask, varlen_inputs
from nvlm.model.language import Stage, build_decoder
from nvlm.model.vision import Projector, build_tower, tile_features


class Split(Protocol):
    """How hidden states lie over tensor-parallel ranks (nvlm.parallel.sequence)."""

    active: bool

    def summed(self, part: Tensor) -> Tensor:
        """A rank's part of the sum that hidden states are, as they lie between layers."""

    def gathered(self, hidden: Tensor) -> Tensor:
        """Hidden states as they lie between layers, whole."""


class NVLM(nn.Module):
    """Vision tower, projector (on the first stage) and the stage's decoder layers.

    Every stage holds the tower, which is frozen and small beside the decoder: all of a replica's
    ranks share the tiles, where those of the first stage alone would keep the others waiting.
    """

    def __init__(self, architecture: Architecture, padded_vocabulary: int, stage: Stage) -> None:
        super().__init__()
        assert architecture.vision and architecture.language
        self.architecture = architecture
        self.vocabulary = architecture.language.vocabulary
        self.stage = stage
        self.vision_model = build_tower(architecture.vision)
        self.vision_projection = Projector(architecture) if stage.is_first else None
        self.language_model = build_decoder(architecture.language, padded_vocabulary, stage)
        self.split: Split | None = None  # of hidden states over tensor-parallel ranks
        self.adapter: Adapter | None = None  # of the decoder (nvlm.model.lora)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """Tower features (N, V, C) of ``tiles`` (N, 3, H, W) uint8, without a graph."""
        return tile_features(self.vision_model, tiles)

    def embed(
        self, input_ids: Tensor, visual_index: Tensor | None, features: Tensor | None
    ) -> Tensor:
        """Decoder inputs (B, S, H): text embeddings, and projected features at image positions.

        Split over tensor-parallel ranks, both are a rank's part of a sum, and so is their union.

        ``visual_index`` (B, S) points into the row's own ``features`` (B, T * V, C), -1 is text.
        Without them all is text.
        """
        assert self.vision_projection is not None
        part = {} if self.split is None else {"part": True}
        text = self.language_model.model.embed_tokens(input_ids, **part)  # (B, S, H)
        if visual_index is not None and features is not None:
            is_visual = visual_index >= 0
            rows = is_visual.nonzero()[:, 0]
            # Gathered before they are projected: rows have different numbers of tiles.
            visual = self.vision_projection(features[rows, visual_index[is_visual]])  # (visual, H)
            text = text.index_put((is_visual,), visual)
        return text if self.split is None else self.split.summed(text)

    def forward(
        self,
        inputs: Tensor,
        *,
        position_ids: Tensor,
        segment_ids: Tensor | None = None,
        segment_lengths: Tensor | None = None,
        visual_index: Tensor | None = None,
        features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """One stage of the forward pass: hidden states (B, S, H), normalised on the last stage.

        ``inputs``: token ids (B, S) on the first stage, hidden states (B, S, H) after it; between
        stages a rank's part of them, where they are split over the sequence. Who sees
        whom is told by ``segment_ids`` (B, S) of packed rows (``segment_lengths`` beside them where
        the decoder's attention is VARLEN), or by ``attention_mask`` (B, K), 1 where a token is,
        over the K positions that ``cache`` holds after this call; without them all that is before.
        Logits are left to the caller, ``language_model.lm_head``: only a few positions need them.
        """
        if self.stage.is_first:
            inputs = self.embed(inputs, visual_index, features)
        seen: dict[str, Tensor | None] = {"attention_mask": attention_mask}
        if segment_ids is not None:
            varlen = self.language_model.config._attn_implementation == VARLEN
            if varlen and segment_lengths is not None:
                seen |= varlen_inputs(segment_lengths)
            else:
                seen["attention_mask"] = packed_mask(segment_ids, inputs.dtype)
        hidden: Tensor = self.language_model.model(
            inputs_embeds=inputs,
            **seen,
            position_ids=position_ids,
            cache=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        if self.stage.is_last and self.split is not None:
            return self.split.gathered(hidden)
        return hidden

    @torch.no_grad()
    def generate(
        self,
        embedded: Tensor,
        attention_mask: Tensor,
        *,
        max_new_tokens: int,
        stop_ids: list[int],
        processors: Sequence[LogitsProcessor] = (),
        cache: Cache | None = None,
    ) -> Tensor:
        """Greedy continuation (B, new) of left-padded prompts, by transformers' ``generate``.

        ``embedded`` (B, S, H): the prompts (``embed``), or what follows the K positions that
        ``cache`` holds of them; ``attention_mask``: int64 (B, K + S), 1 where a token is. A row
        that is done is filled up with ``stop_ids[0]``. Padded vocabulary rows can't be chosen.
        ``processors`` change the logits of each step.
        """
        rows = self.language_model.config.vocab_size
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
            suppress_tokens=list(range(self.vocabulary, rows)) or None,
        )
        held = 0 if cache is None else cache.get_seq_length()
        # transformers wants inputs as long as the mask, and leaves out what the cache holds.
        padded = functional.pad(embedded, (0, 0, held, 0))  # (B, K + S, H)
        return self.language_model.generate(
            inputs_embeds=padded,
            attention_mask=attention_mask,
            cache=cache,
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
        )


def features_by_row(features: Tensor, tiles_per_row: Tensor) -> Tensor:
    """Group tile features (N, V, C) by row and pad with zeros: (B, T * V, C), T at least 1."""
    rows = features.split(tiles_per_row.tolist())
    length = max(1, int(tiles_per_row.max()))
    padded = pad_sequence([*rows, features.new_zeros(length, *features.shape[1:])], True)[:-1]
    return padded.flatten(1, 2)
