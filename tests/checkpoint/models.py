"""Small models in Hugging Face's layout, saved by transformers, with NVLM's awkward traits."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import (
    InternVLVisionConfig,
    InternVLVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

# OpenGVLab's names (facts of its repos) for transformers' own.
OPENGVLAB = (
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.position_embeddings", "embeddings.position_embedding"),
    ("embeddings.patch_embeddings.projection.", "embeddings.patch_embedding."),
    ("encoder.layer.", "encoder.layers."),
    ("attention.projection_layer.", "attn.proj."),
    ("attention.q_norm.", "attn.q_norm."),
    ("attention.k_norm.", "attn.k_norm."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("lambda_1", "ls1"),
    ("lambda_2", "ls2"),
)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Every parameter random, norms and biases too: none may be mixed up unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.3, generator=generator)


def save_language(
    directory: Path,
    family: str,
    *,
    heads: int = 4,
    groups: int = 2,
    layers: int = 4,
    vocabulary: int = 101,
    shard_size: str = "5GB",
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
) -> LlamaForCausalLM | Qwen2ForCausalLM:
    """Save a decoder with a tokenizer; return transformers' model."""
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[family]
    config = config_class(
        vocab_size=vocabulary,
        hidden_size=8 * heads,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6},
        tie_word_embeddings=tied,
    )
    model = model_class(config)
    torch.nn.Module.to(model, dtype)
    randomise(model, 1)
    model.save_pretrained(directory, max_shard_size=shard_size)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return model.eval()


def save_vision(
    directory: Path,
    *,
    like: str = "6B",
    heads: int = 3,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
) -> InternVLVisionModel:
    """Save an InternViT with the traits of the 6B or the 300M, as OpenGVLab lays it out.

    Returns transformers' model.
    """
    hidden = 8 * heads
    norm_type, qkv_bias, qk_norm = {
        "6B": ("rms_norm", False, True),
        "300M": ("layer_norm", True, False),
    }[like]
    config = InternVLVisionConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=40,
        image_size=24,
        patch_size=6,
        layer_norm_eps=1e-6,
        norm_type=norm_type,
        hidden_act="gelu",
        attention_bias=qkv_bias,
        use_qk_norm=qk_norm,
        use_mean_pooling=True,
    )
    model = InternVLVisionModel(config)
    torch.nn.Module.to(model, dtype)
    randomise(model, 2)
    state = model.state_dict()
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}.attention."
        for kind in ("weight", "bias") if qkv_bias else ("weight",):
            qkv = [state.pop(f"{prefix}{name}_proj.{kind}") for name in "qkv"]
            state[f"encoder.layers.{layer}.attn.qkv.{kind}"] = torch.cat(qkv)
    directory.mkdir(parents=True)
    save_file(
        {opengvlab_name(name): value for name, value in state.items()},
        directory / "model.safetensors",
    )
    description = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 40,
        "image_size": 24,
        "patch_size": 6,
        "layer_norm_eps": 1e-6,
        "norm_type": norm_type,
        "hidden_act": "gelu",
        "qk_normalization": qk_norm,
        "qkv_bias": qkv_bias,
    }
    (directory / "config.json").write_text(json.dumps(description))
    return model.eval()


def opengvlab_name(name: str) -> str:
    for old, new in OPENGVLAB:
        name = name.replace(old, new)
    return name
