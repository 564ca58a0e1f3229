"""The mark before a text's first word, which no part of a conversation is to get.

A tokenizer made from SentencePiece's writes a space as ``▁``, and puts one before a text as well.
The fast form of such a tokenizer does so after each control token (a ``Prepend`` normalizer), or
before whatever it is given at once (``Metaspace`` with ``prepend_scheme``). Yi's is known for it:
``<|im_end|>`` and a newline are [7, 59568, 144] where Yi was trained on [7, 144] (01-ai/Yi-1.5,
issue 37; in transformers, why Llama's tokenizer has ``legacy=False``). Upstream loads Yi's with
``from_slow=True, legacy=False`` and gets no mark behind a control token, which is where all text of
a conversation stands.
"""

from __future__ import annotations

from typing import Any


def without_word_mark(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The content of a tokenizer.json, so that no text it is given gets a mark that it lacks.

    Spaces stay ``▁``. Equal to ``tokenizer`` where there is no such mark, as in byte-level ones.
    """
    parts = tokenizer.keys() & {"normalizer", "pre_tokenizer"}
    return {**tokenizer, **{part: _unmarked(tokenizer[part]) for part in parts}}


def _unmarked(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer without what marks; None where nothing is left of it."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        # Older files say it in a second field, which must agree.
        older = {"add_prefix_space": False} if "add_prefix_space" in step else {}
        return {**step, "prepend_scheme": "never", **older}
    if step["type"] == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        return {**step, name: [left for inner in step[name] if (left := _unmarked(inner))]}
    return step
