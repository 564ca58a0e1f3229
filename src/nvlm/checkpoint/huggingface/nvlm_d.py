"""NVLM_D, the layout of nvidia/NVLM-D-72B on Hugging Face: its names and shapes, its config.json.

The tower's attention carries 7 dummy heads of zeros whatever its size (32 heads at 6B): the model
code there and in vLLM counts on them. The vocabulary has no padding, unless the image token lies
behind it: servers look its row up. What our configuration files add is ``image_token_id``,
``num_dummy_heads`` and ``trained_vocab_size``.
"""

from __future__ import annotations

from typing import Any

import torch

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.layout import LANGUAGE, PROJECTION, VISION, padded_rows, part_names
from nvlm.checkpoint.parts import language, projector, vision

DUMMY_HEADS = 7
# Name there: Megatron-core's name in the projector's part.
PROJECTOR = {
    "mlp1.0.weight": "encoder.linear_fc1.layer_norm_weight",
    "mlp1.0.bias": "encoder.linear_fc1.layer_norm_bias",
    "mlp1.1.weight": "encoder.linear_fc1.weight",
    "mlp1.3.weight": "encoder.linear_fc2.weight",
}
CLASSES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
# Of the configuration and modeling files; each has a class NAME_Config and NAME_Model.
MODEL_TYPES = {"qwen2": "NVLM_D", "llama": "NVLM_D_Yi"}
ROWS_MULTIPLE = 64  # as vLLM pads a vocabulary
# Tables of the vocabulary, whose rows of zeros an import drops.
TABLES = (f"{LANGUAGE}.model.embed_tokens.weight", f"{LANGUAGE}.lm_head.weight")


def exported_rows(vocabulary: int, image_token_id: int) -> int:
    """Rows of an export's embedding and head, ``image_token_id`` among them.

    Those behind the trained ``vocabulary`` are zeros: a score of 0, below the best token's of any
    trained model. Yi has 64,000 rows, and its image token the id 64,000.
    """
    if image_token_id < vocabulary:
        return vocabulary
    return padded_rows(image_token_id + 1, multiple=ROWS_MULTIPLE, tensor=1)


def part_shapes(architecture: Architecture, part: str, rows: int) -> dict[str, tuple[int, ...]]:
    """Full names and shapes of the tensors that ``part`` of a checkpoint becomes, in file order.

    ``rows``: of the vocabulary's tables (``exported_rows``).
    """
    tower, decoder = architecture.vision, architecture.language
    assert tower is not None and decoder is not None
    half, _, kind = part.partition(".")
    if half == PROJECTION:
        core = projector.core_shapes(architecture)
        return {name: core[core_name] for name, core_name in PROJECTOR.items()}
    table = (rows, decoder.hidden_size)
    if part == f"{LANGUAGE}.embedding":
        return {f"{LANGUAGE}.model.embed_tokens.weight": table}
    if part == f"{LANGUAGE}.head":
        norm = {f"{LANGUAGE}.model.norm.weight": (decoder.hidden_size,)}
        head = {} if decoder.tied_embeddings else {f"{LANGUAGE}.lm_head.weight": table}
        return {**norm, **head}
    if part == f"{VISION}.embedding":
        shapes = vision.embedding_shapes(tower)
        return {f"{VISION}.embeddings.{name}": shape for name, shape in shapes.items()}
    number = int(kind.removeprefix("layer."))
    if half == LANGUAGE:
        shapes = language.layer_shapes(decoder)
        return {f"{LANGUAGE}.model.layers.{number}.{name}": shapes[name] for name in shapes}
    layer = {name: torch.empty(s, device="meta") for name, s in vision.layer_shapes(tower).items()}
    padded = vision.add_dummy_heads(layer, tower, DUMMY_HEADS)
    return {
        f"{VISION}.encoder.layers.{number}.{name}": tuple(padded[name].shape) for name in padded
    }


def all_shapes(architecture: Architecture, rows: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the whole model, with ``rows`` of the vocabulary."""
    parts = part_names(architecture)
    return {n: s for part in parts for n, s in part_shapes(architecture, part, rows).items()}


def configuration(
    architecture: Architecture, *, dtype: str, image_token_id: int, tokens: dict[str, int | None]
) -> dict[str, Any]:
    """``config.json``. ``tokens``: ids of the tokenizer's begin, end and padding."""
    tower, decoder = architecture.vision, architecture.language
    assert tower is not None and decoder is not None
    name = MODEL_TYPES[decoder.family]
    model = f"modeling_nvlm_d.{name}_Model"
    return {
        "architectures": ["NVLM_D"],
        "model_type": name,
        "auto_map": {
            "AutoConfig": f"configuration_nvlm_d.{name}_Config",
            "AutoModel": model,
            "AutoModelForCausalLM": model,
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": tower.image_size,
        "image_token_id": image_token_id,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "chatml",
        "trained_vocab_size": decoder.vocabulary,
        "use_thumbnail": True,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "torch_dtype": dtype,
        "llm_config": {
            "architectures": [CLASSES[decoder.family]],
            "model_type": decoder.family,
            "hidden_size": decoder.hidden_size,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.query_groups,
            "intermediate_size": decoder.ffn_hidden_size,
            "vocab_size": exported_rows(decoder.vocabulary, image_token_id),
            "rms_norm_eps": decoder.norm_epsilon,
            "rope_theta": decoder.rope_theta,
            "rope_scaling": None,
            "max_position_embeddings": decoder.max_positions,
            "hidden_act": "silu",
            "attention_bias": decoder.qkv_bias,
            "mlp_bias": False,
            "tie_word_embeddings": decoder.tied_embeddings,
            "torch_dtype": dtype,
            **tokens,
        },
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_size": tower.hidden_size,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "num_dummy_heads": DUMMY_HEADS,
            "intermediate_size": tower.ffn_hidden_size,
            "image_size": tower.image_size,
            "patch_size": tower.patch_size,
            "layer_norm_eps": tower.norm_epsilon,
            "qk_normalization": tower.qk_norm,
            "qkv_bias": tower.qkv_bias,
            "norm_type": tower.norm_type,
            "hidden_act": "gelu",
            "initializer_factor": 0.1,
            "initializer_range": 1e-10,
            "drop_path_rate": 0.0,
            "use_flash_attn": True,
            "torch_dtype": dtype,
        },
    }


def preprocessor(image_size: int) -> dict[str, Any]:
    """``preprocessor_config.json``: ImageNet's statistics, bicubic resizing."""
    return {
        "crop_size": image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": image_size,
    }
