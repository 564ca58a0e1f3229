"""From a conversation to token ids, labels, and the places of the visual tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nvlm.checkpoint.huggingface.word_mark import without_word_mark
from nvlm.errors import UserError
from nvlm.model.prompts import Template, Turn, render, tile_tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100  # label of a position that is not trained (PyTorch's default ignore_index)
TEXT = -1  # visual index of a text position
VISUAL_ID = 0  # input id under a visual token; its embedding is replaced and never seen


@dataclass(frozen=True, kw_only=True)
class EncodedConversation:
    """One sample as the decoder sees it; all arrays are int64 (S,)."""

    input_ids: NDArray[np.int64]
    # The id that each position must predict (already shifted), or IGNORED.
    labels: NDArray[np.int64]
    # tile * tokens_per_tile + token within the sample's visual tokens, or TEXT.
    visual_index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.input_ids)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Load ``tokenizer.json`` and its configuration from ``directory``: no network, no code.

    The pieces of a conversation are tokenised one by one, and none of them begins with a ``▁`` that
    its text lacks: see nvlm.checkpoint.huggingface.word_mark.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory} has no tokenizer.json: run the stage that makes it again")
    published = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    backend = Tokenizer.from_str(json.dumps(without_word_mark(published)))
    return PreTrainedTokenizerFast.from_pretrained(
        directory, local_files_only=True, tokenizer_object=backend
    )


def encode_conversation(
    conversation: Sequence[Turn],
    tokenizer: PreTrainedTokenizerFast,
    *,
    template: Template,
    family: str,
    tiles_per_image: Sequence[int],
    tokens_per_tile: int,
    tile_tags: bool,
    generation: bool = False,
) -> EncodedConversation:
    """Encode ``conversation``, whose images have ``tiles_per_image`` tiles (thumbnail included).

    An image becomes, for each tile, its tag (if ``tile_tags``) and ``tokens_per_tile`` visual
    tokens. As in Megatron, a tag is tokenised apart from its neighbours; the model on the Hub joins
    them (``><`` is one token of Qwen2) and differs there from how it was trained.

    ``conversation`` is left as it is: upstream writes its tags into the caller's list, and nests
    them at a second call. Raises ValueError when the images do not match ``tiles_per_image``.
    """
    row = _Row()
    if family == "llama" and tokenizer.bos_token_id is not None:
        row.add_text([tokenizer.bos_token_id], answer=False)
    segments = render(conversation, template, generation=generation)
    images = sum(segment.kind == "image" for segment in segments)
    if images != len(tiles_per_image):
        raise ValueError(f"{images} images in the text, {len(tiles_per_image)} given")
    remaining = iter(tiles_per_image)
    for segment in segments:
        if segment.kind == "image":
            for tag in _tags(family, next(remaining), tile_tags):
                row.add_text(_encode_text(tokenizer, tag), answer=False)
                row.add_tile(tokens_per_tile)
        elif segment.kind == "control":
            row.add_text([_control_id(tokenizer, segment.text)], answer=segment.answer)
        else:
            row.add_text(_encode_text(tokenizer, segment.text), answer=segment.answer)
    return row.encoded()


class _Row:
    """A sequence under construction."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.visual: list[int] = []
        self.answer: list[bool] = []
        self.visual_tokens = 0

    def add_text(self, ids: Sequence[int], *, answer: bool) -> None:
        self.ids += ids
        self.visual += [TEXT] * len(ids)
        self.answer += [answer] * len(ids)

    def add_tile(self, tokens: int) -> None:
        self.ids += [VISUAL_ID] * tokens
        self.visual += range(self.visual_tokens, self.visual_tokens + tokens)
        self.answer += [False] * tokens
        self.visual_tokens += tokens

    def encoded(self) -> EncodedConversation:
        ids = np.array(self.ids, dtype=np.int64)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        answer = np.array(self.answer, dtype=bool)
        labels[:-1][answer[1:]] = ids[1:][answer[1:]]
        return EncodedConversation(
            input_ids=ids, labels=labels, visual_index=np.array(self.visual, dtype=np.int64)
        )


def _tags(family: str, tiles: int, with_tags: bool) -> list[str]:
    """One tag a tile, empty where tiles are not tagged."""
    return tile_tags(family, tiles) if with_tags else [""] * tiles


def _encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of ``text`` as plain text, whatever control strings it spells."""
    backend = tokenizer.backend_tokenizer
    return [
        token
        for piece in _without_control_strings(text, _control_strings(tokenizer))
        for token in backend.encode(piece, add_special_tokens=False).ids
    ]


def _without_control_strings(text: str, control: re.Pattern[str] | None) -> Iterator[str]:
    """Pieces that join to ``text`` and in none of which the tokenizer finds an added token.

    Special tokens could be switched off in the tokenizer, but not those that a vocabulary adds
    without calling them special: cutting each after its first character works for all.
    """
    while control is not None and (found := control.search(text)):
        yield text[: found.start() + 1]
        text = text[found.start() + 1 :]
    if text:
        yield text


@cache
def _control_strings(tokenizer: PreTrainedTokenizerFast) -> re.Pattern[str] | None:
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    longer_than_a_character = [re.escape(token) for token in added if len(token) > 1]
    return re.compile("|".join(longer_than_a_character)) if longer_than_a_character else None


def _control_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    token_id = tokenizer.get_added_vocab().get(token)
    if token_id is None:
        raise UserError(f"the tokenizer has no control token {token}: use a ChatML tokenizer")
    return token_id
