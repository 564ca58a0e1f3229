"""Prompts that begin alike are read once: the system turn a batch, an image once for its questions.

VQAv2 asks 5.3 questions an image. The tower's share of an image, and the decoder's, are nearly all
of such a prompt's cost, so that asking them together costs about a fifth. A batch is a tree of at
most three levels: what all prompts begin with, what the prompts of one image go on with, and the
rest of each. A level's nodes are the rows of one forward pass, whose keys and values their branches
go on from; pieces of different length are padded on the left, and padding is never attended to.

Shapes: B prompts, R rows of a level, W positions of its longest piece, H decoder hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from nvlm.data.loading.batch import EncodedSample
from nvlm.evaluate.answering.prompter import left_pad
from nvlm.model.nvlm import NVLM, features_by_row


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A piece of one or more prompts."""

    parent: int  # node of the level before that it goes on from
    piece: EncodedSample


PromptTree = list[list[Branch]]  # by level


def prompt_tree(samples: Sequence[EncodedSample], images: Sequence[Hashable]) -> PromptTree:
    """The levels of ``samples``; those with equal ``images`` show the same images.

    The last level has a branch a sample, in their order, none of them empty.
    """
    if len(samples) == 1:
        return [[Branch(parent=0, piece=samples[0])]]
    members: dict[Hashable, list[int]] = {}
    for place, shown in enumerate(images):
        members.setdefault(shown, []).append(place)
    groups = list(members.values())
    common = _common_length(samples)
    # Others' images may have as many tiles and look the same here.
    trunk = common if len(groups) == 1 else min(common, _first_visual(samples[0]))
    ends = [trunk] * len(samples)
    levels = [[Branch(parent=0, piece=_piece(samples[0], 0, trunk))]] if trunk else []
    parents = [0] * len(samples)
    if 1 < len(groups) < len(samples):
        level = []
        for number, group in enumerate(groups):
            common = _common_length([samples[place] for place in group])
            end = max(trunk, min(common, _after_visual(samples[group[0]])))
            level.append(Branch(parent=0, piece=_piece(samples[group[0]], trunk, end)))
            for place in group:
                ends[place], parents[place] = end, number
        levels.append(level)
    leaves = [
        Branch(parent=parent, piece=_piece(sample, end, len(sample)))
        for sample, end, parent in zip(samples, ends, parents, strict=True)
    ]
    return [*levels, leaves]


def generate_from_tree(
    model: NVLM,
    tree: PromptTree,
    encode: Callable[[Tensor], Tensor],
    *,
    max_new_tokens: int,
    stop_ids: list[int],
    processors: Sequence[LogitsProcessor] = (),
) -> Tensor:
    """The token ids (B, new) that ``model`` goes on with after each leaf, by ``NVLM.generate``.

    ``encode`` gives the features of uint8 tiles (N, 3, H, W).
    """
    decoder = model.language_model
    device = next(model.parameters()).device
    cache = DynamicCache(config=decoder.config)
    mask = torch.ones(1, 0, dtype=torch.long, device=device)  # (R, positions in the cache)
    with torch.no_grad():
        for depth, level in enumerate(tree):
            batch = left_pad([branch.piece for branch in level])
            parents = torch.tensor([branch.parent for branch in level], device=device)
            mask = torch.cat([mask[parents], batch.attention_mask.to(device)], dim=1)
            cache.batch_select_indices(parents)
            visual, features = None, None
            if len(batch.tiles):
                visual = batch.visual_index.to(device)
                features = features_by_row(encode(batch.tiles.to(device)), batch.tiles_per_row)
            embedded = model.embed(batch.input_ids.to(device), visual, features)  # (R, W, H)
            if depth == len(tree) - 1:
                break
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -embedded.shape[1] :]
            decoder.model(
                inputs_embeds=embedded,
                attention_mask=mask,
                position_ids=positions,
                cache=cache,
                use_cache=True,
            )
    return model.generate(
        embedded,
        mask,
        cache=cache,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        processors=processors,
    )


def _piece(sample: EncodedSample, start: int, end: int) -> EncodedSample:
    """Positions ``start`` to ``end`` of ``sample``, with its tiles only if they are shown there."""
    whole = sample.conversation
    part = replace(
        whole,
        input_ids=whole.input_ids[start:end],
        labels=whole.labels[start:end],
        visual_index=whole.visual_index[start:end],
    )
    shown = (part.visual_index >= 0).any()
    return replace(sample, conversation=part, tiles=sample.tiles if shown else sample.tiles[:0])


def _common_length(samples: Sequence[EncodedSample]) -> int:
    """Positions that all begin with, at least one being left to each."""
    length = min(len(sample) for sample in samples) - 1
    rows = np.stack(
        [
            np.stack([sample.conversation.input_ids, sample.conversation.visual_index])[:, :length]
            for sample in samples
        ]
    )
    differs = (rows != rows[0]).any(axis=(0, 1))
    return int(differs.argmax()) if differs.any() else length


def _first_visual(sample: EncodedSample) -> int:
    shown = sample.conversation.visual_index >= 0
    return int(shown.argmax()) if shown.any() else len(sample)


def _after_visual(sample: EncodedSample) -> int:
    places = np.flatnonzero(sample.conversation.visual_index >= 0)
    return int(places[-1]) + 1 if len(places) else 0
