"""The language stand-ins' own tokenizers: byte-level BPE with ChatML's control tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nvlm.model.prompts import END, START

# How Qwen2's tokenizer cuts text into words before it merges bytes: digits one by one.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Control tokens of the two families; the first is what pads. Only Yi starts with one (its BOS).
SPECIAL_TOKENS = {
    "llama": ("<unk>", "<|startoftext|>", "<|endoftext|>", START, END),
    "qwen2": ("<|endoftext|>", START, END, "<|vision_pad|>"),
}


def train_tokenizer(family: str, texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of at most ``size`` entries, control tokens and all bytes included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS[family]),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>" if family == "llama" else None,
        eos_token=END,
        pad_token=SPECIAL_TOKENS[family][0],
        clean_up_tokenization_spaces=False,
    )
