"""The tokenizer of an export: the decoder's own, with a token that holds the places of an image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm.atomic import write_text
from nvlm.checkpoint.format.files import link_file
from nvlm.checkpoint.huggingface.weights import read_json
from nvlm.checkpoint.huggingface.word_mark import without_word_mark
from nvlm.errors import UserError

# Qwen2.5's tokenizer has it, and vLLM looks for it; Qwen2's and Yi's get it.
IMAGE_TOKEN = "<|vision_pad|>"
KINDS = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """What config.json says of the tokenizer."""

    image: int
    special: dict[str, int | None]  # bos_token_id, eos_token_id, pad_token_id


def export_tokenizer(source: Path, destination: Path, names: list[str]) -> TokenIds:
    """Put files ``names`` of the tokenizer in ``source`` into ``destination``.

    ``IMAGE_TOKEN`` is added behind the last token where it is missing. Its rows of the embedding
    are never read: the model puts a tile's features there. Text is marked as in training, that is,
    as it stands (word_mark). Raises UserError if there is no tokenizer.json.
    """
    if "tokenizer.json" not in names:
        raise UserError(f"{source} has no tokenizer.json: convert a model that ships one")
    published = read_json(source / "tokenizer.json")
    tokenizer = without_word_mark(published)
    config = read_json(source / "tokenizer_config.json") if _has(names) else {}
    ids = _ids(tokenizer)
    changed: dict[str, dict[str, Any]] = {}
    if tokenizer != published:
        changed["tokenizer.json"] = tokenizer
    if IMAGE_TOKEN not in ids:
        ids[IMAGE_TOKEN] = max(ids.values()) + 1
        token = {"id": ids[IMAGE_TOKEN], "content": IMAGE_TOKEN, "single_word": False}
        token |= {"lstrip": False, "rstrip": False, "normalized": False, "special": True}
        tokenizer["added_tokens"] = [*tokenizer.get("added_tokens", []), token]
        changed["tokenizer.json"] = tokenizer
        if "added_tokens_decoder" in config:
            key = str(token.pop("id"))
            config["added_tokens_decoder"] = {**config["added_tokens_decoder"], key: token}
            changed["tokenizer_config.json"] = config
    for name in names:
        if name in changed:
            text = json.dumps(changed[name], indent=2, ensure_ascii=False)
            write_text(destination / name, text + "\n")
        else:
            link_file(source, destination, name)
    special = {f"{kind}_id": ids.get(_content(config.get(kind))) for kind in KINDS}
    return TokenIds(image=ids[IMAGE_TOKEN], special=special)


def _has(names: list[str]) -> bool:
    return "tokenizer_config.json" in names


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
