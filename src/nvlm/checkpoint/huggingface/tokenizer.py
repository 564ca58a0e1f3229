"""The tokenizer of an export: the decoder's own, made to give the ids that training saw.

A server tokenises ``<Image><tile_1>...`` as one text, where training encodes each tag apart; vLLM
writes ``<tile_global_thumbnail>`` for every decoder, where Yi is trained on ``<tile_global>``. Both
are mended in ``tokenizer.json``, which also gets a token that holds an image's places. The files
that training reads go along in a folder of their own, which ``import_hf`` takes back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm.atomic import write_text
from nvlm.checkpoint.format.files import link_file
from nvlm.checkpoint.huggingface.chat_template import chat_template
from nvlm.checkpoint.huggingface.weights import read_json
from nvlm.checkpoint.huggingface.word_mark import without_word_mark
from nvlm.errors import UserError
from nvlm.model.prompts import END, tile_tags

# Qwen2.5's tokenizer has it, and vLLM looks for it; Qwen2's and Yi's get it.
IMAGE_TOKEN = "<|vision_pad|>"
KINDS = ("bos_token", "eos_token", "pad_token")
# Of an export: the files as the decoder's repo has them.
TRAINED_TOKENIZER = "trained_tokenizer"
SERVED_TAG = "<tile_global_thumbnail>"  # what vLLM writes for a thumbnail
ANY_TILE_TAG = r"<tile_(?:\d+|global(?:_thumbnail)?)>"


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """What config.json and generation_config.json say of the tokenizer."""

    image: int
    special: dict[str, int | None]  # bos_token_id, eos_token_id, pad_token_id
    stop: list[int]  # each ends an answer


def token_ids(source: Path) -> TokenIds:
    """The ids of the tokenizer in ``source``, that of ``IMAGE_TOKEN`` behind all if it has none.

    Raises UserError if there is no tokenizer.json.
    """
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{source} has no tokenizer.json: convert a model that ships one")
    ids = _ids(read_json(source / "tokenizer.json"))
    config = _config(source)
    special = {f"{kind}_id": ids.get(_content(config.get(kind))) for kind in KINDS}
    ends = (ids.get(END), special["eos_token_id"])
    return TokenIds(
        image=ids.get(IMAGE_TOKEN, max(ids.values()) + 1),
        special=special,
        stop=list(dict.fromkeys(end for end in ends if end is not None)),
    )


def export_tokenizer(
    source: Path, destination: Path, names: list[str], *, family: str, ids: TokenIds
) -> None:
    """Put the tokenizer in ``source`` into ``destination``, and its files ``names`` beside it.

    The class is named PreTrainedTokenizerFast: AutoTokenizer rebuilds a tokenizer of another one
    from its vocabulary alone. Text is read as in training, that is, as it stands (word_mark). No
    sampling is suggested, whatever the decoder's repo suggests.
    """
    for name in names:
        link_file(source, destination / TRAINED_TOKENIZER, name)
    tokenizer = without_word_mark(read_json(source / "tokenizer.json"))
    config = _config(source)
    if IMAGE_TOKEN not in _ids(tokenizer):
        token = {"content": IMAGE_TOKEN, "lstrip": False, "normalized": False, "rstrip": False}
        token |= {"single_word": False, "special": True}
        added = [*tokenizer.get("added_tokens", []), {"id": ids.image, **token}]
        tokenizer["added_tokens"] = added
        if "added_tokens_decoder" in config:
            known = config["added_tokens_decoder"]
            config["added_tokens_decoder"] = {**known, str(ids.image): token}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    apart = {**split, "pattern": {"Regex": ANY_TILE_TAG}}
    _prepend(tokenizer, "pre_tokenizer", "pretokenizers", apart)
    thumbnail = tile_tags(family, 1)[0]
    if thumbnail != SERVED_TAG:
        renamed = {"type": "Replace", "pattern": {"String": SERVED_TAG}, "content": thumbnail}
        _prepend(tokenizer, "normalizer", "normalizers", renamed)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("chat_template", None)  # a file of its own says it
    _write_json(destination / "tokenizer.json", tokenizer)
    _write_json(destination / "tokenizer_config.json", config)
    begins = family == "llama" and ids.special["bos_token_id"] is not None
    write_text(destination / "chat_template.jinja", chat_template(begins=begins))
    generation = {**ids.special, "eos_token_id": ids.stop or None}
    present = {key: value for key, value in generation.items() if value is not None}
    _write_json(destination / "generation_config.json", present)


def _prepend(tokenizer: dict[str, Any], key: str, plural: str, step: dict[str, Any]) -> None:
    """Put ``step`` before what the pipeline ``key`` of a tokenizer.json does."""
    before = tokenizer.get(key)
    steps = [step] if before is None else [step, before]
    tokenizer[key] = {"type": "Sequence", plural: steps}


def _config(source: Path) -> dict[str, Any]:
    path = source / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Id of every token of a tokenizer.json."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: [piece, score]
        vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    return {**vocabulary, **added}


def _content(token: Any) -> str:
    """A token's text, which a tokenizer_config.json may wrap in an object."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
