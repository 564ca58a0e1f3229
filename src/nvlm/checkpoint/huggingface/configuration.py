"""Hugging Face's ``config.json`` and this project's architecture.

What the architecture can't express (scaled rotary frequencies, a window) is refused by name: a
model that is silently another one is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm.checkpoint.format.architecture import (
    NORM_TYPES,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.checkpoint.huggingface.weights import read_json
from nvlm.errors import UserError

LANGUAGE_CLASSES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
TIED = "tie_word_embeddings"
VISION_CLASSES = {"InternVisionModel"}  # of OpenGVLab's InternViT repos


def read_language_architecture(directory: Path) -> LanguageArchitecture:
    """The decoder that ``directory/config.json`` describes: Llama (Yi among them) or Qwen2.

    Raises UserError for anything else, and for traits that NVLM's decoders don't have.
    """
    path = directory / "config.json"
    return language_architecture(path, read_json(path))


def language_architecture(path: Path, config: Mapping[str, Any]) -> LanguageArchitecture:
    """The decoder that ``config``, read from ``path``, describes."""
    family = LANGUAGE_CLASSES.get(_class(config))
    if family is None:
        raise UserError(
            f"{path} is of {_class(config)}, not of {' or '.join(LANGUAGE_CLASSES)}: choose such "
            "a model in conf/model"
        )
    _require(path, config, "hidden_act", "silu")
    for trait in ("mlp_bias", "use_sliding_window"):
        _require(path, {trait: False, **config}, trait, False)
    if family == "llama":
        _require(path, {"attention_bias": False, **config}, "attention_bias", False)
    heads = _integer(path, config, "num_attention_heads")
    groups = _integer(path, {"num_key_value_heads": heads, **config}, "num_key_value_heads")
    hidden = _integer(path, config, "hidden_size")
    if hidden % heads or heads % groups:
        raise UserError(f"{path}: {hidden} channels, {heads} heads, {groups} groups do not divide")
    if config.get("head_dim") is not None:
        _require(path, config, "head_dim", hidden // heads)
    return LanguageArchitecture(
        family=family,
        hidden_size=hidden,
        layers=_integer(path, config, "num_hidden_layers"),
        heads=heads,
        query_groups=groups,
        ffn_hidden_size=_integer(path, config, "intermediate_size"),
        norm_epsilon=_number(path, config, "rms_norm_eps"),
        rope_theta=_rope_theta(path, config),
        vocabulary=_integer(path, config, "vocab_size"),
        max_positions=_integer(path, config, "max_position_embeddings"),
        tied_embeddings=_boolean(path, {TIED: False, **config}, TIED),
    )


def read_vision_architecture(directory: Path) -> VisionArchitecture:
    """The tower that ``directory/config.json`` describes: InternViT-6B, InternViT-300M, or akin.

    Raises UserError for anything else.
    """
    path = directory / "config.json"
    return vision_architecture(path, read_json(path))


def vision_architecture(path: Path, config: Mapping[str, Any]) -> VisionArchitecture:
    """The tower that ``config``, read from ``path``, describes."""
    if _class(config) not in VISION_CLASSES:
        raise UserError(
            f"{path} is of {_class(config)}, not of {' or '.join(VISION_CLASSES)}: choose an "
            "InternViT in conf/model"
        )
    _require(path, config, "hidden_act", "gelu")
    norm_type = config.get("norm_type", "rms_norm")  # the 6B's config.json does not say it
    if norm_type not in NORM_TYPES:
        raise UserError(f"{path}: norm_type {norm_type!r} is none of {', '.join(NORM_TYPES)}")
    hidden = _integer(path, config, "hidden_size")
    heads = _integer(path, config, "num_attention_heads")
    image = _integer(path, config, "image_size")
    patch = _integer(path, config, "patch_size")
    if hidden % heads or image % (2 * patch):
        raise UserError(
            f"{path}: {hidden} channels do not divide into {heads} heads, or {image} pixels into "
            f"an even number of patches of {patch}"
        )
    return VisionArchitecture(
        hidden_size=hidden,
        layers=_integer(path, config, "num_hidden_layers"),
        heads=heads,
        ffn_hidden_size=_integer(path, config, "intermediate_size"),
        image_size=image,
        patch_size=patch,
        norm_epsilon=_number(path, config, "layer_norm_eps"),
        norm_type=norm_type,
        qkv_bias=_boolean(path, config, "qkv_bias"),
        qk_norm=_boolean(path, config, "qk_normalization"),
    )


def _class(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or ["an unnamed class"]
    return str(names[0])


def _rope_theta(path: Path, config: Mapping[str, Any]) -> float:
    """transformers 5 keeps it in ``rope_parameters``, repos of before at the top level."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{path} scales rotary frequencies ({kind}), which is not supported")
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))  # transformers' default
    return _number(path, {"rope_theta": theta}, "rope_theta")


def _integer(path: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise UserError(f"{path}: {key} should be a whole number above 0, not {value!r}")
    return value


def _boolean(path: Path, config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if type(value) is not bool:
        raise UserError(f"{path}: {key} should be true or false, not {value!r}")
    return value


def _number(path: Path, config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{path}: {key} should be a number above 0, not {value!r}")
    return float(value)


def _require(path: Path, config: Mapping[str, Any], key: str, value: object) -> None:
    if config.get(key) != value:
        raise UserError(
            f"{path}: {key} is {config.get(key)!r}, and only {value!r} is supported: choose "
            "another model"
        )
