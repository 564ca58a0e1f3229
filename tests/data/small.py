"""A tokenizer of bytes, and tiny shapes."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)


def byte_tokenizer():
    """A token a byte, and ChatML."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def small_architecture():
    """Tiles of 48 pixels, four visual tokens each."""
    return Architecture(
        vision=VisionArchitecture(
            hidden_size=12,
            layers=1,
            heads=3,
            ffn_hidden_size=24,
            image_size=48,
            patch_size=12,
            norm_epsilon=1e-6,
        ),
        language=LanguageArchitecture(
            family="qwen2",
            hidden_size=16,
            layers=1,
            heads=2,
            query_groups=1,
            ffn_hidden_size=32,
            norm_epsilon=1e-6,
            rope_theta=1e4,
            vocabulary=258,
            max_positions=512,
        ),
    )
