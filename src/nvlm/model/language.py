"""The decoder: transformers' Llama or Qwen2, whole or as one pipeline stage of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from nvlm.checkpoint.format.architecture import LanguageArchitecture

Decoder = LlamaForCausalLM | Qwen2ForCausalLM
CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Which part of the decoder a process holds: layers ``first`` to ``last`` (exclusive)."""

    first: int
    last: int
    is_first: bool = True
    is_last: bool = True


def build_decoder(architecture: LanguageArchitecture, rows: int, stage: Stage) -> Decoder:
    """The decoder's ``stage`` with an embedding and a head of ``rows`` (the padded vocabulary).

    Parts that belong to other stages are left out: a first stage alone embeds, a last stage alone
    normalises and has the head.
    """
    config_class, model_class = CLASSES[architecture.family]
    config = config_class(
        vocab_size=rows,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.ffn_hidden_size,
        num_hidden_layers=stage.last - stage.first,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.query_groups,
        max_position_embeddings=architecture.max_positions,
        rms_norm_eps=architecture.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    decoder = model_class(config)
    tie_head(decoder, architecture, stage)
    if not stage.is_first:
        decoder.model.embed_tokens = None
    if not stage.is_last:
        decoder.model.norm = nn.Identity()
        decoder.lm_head = None
    return decoder


def tie_head(decoder: Decoder, architecture: LanguageArchitecture, stage: Stage) -> None:
    """Make the head's matrix the embedding's very parameter, where ``stage`` has both.

    To be called again whenever either has been replaced. Where the ends are on two stages each has
    its copy, and ``nvlm.parallel.tied`` keeps them equal.
    """
    if architecture.tied_embeddings and stage.is_first and stage.is_last:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight


def reset_rotary(decoder: Decoder, device: torch.device) -> None:
    """Compute the rotary frequencies of a decoder that was built on the meta device.

    They are a buffer that no checkpoint holds.
    """
    rotary = decoder.model.rotary_emb
    decoder.model.rotary_emb = type(rotary)(config=decoder.config).to(device)
