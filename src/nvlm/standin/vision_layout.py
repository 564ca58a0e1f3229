"""The vision stand-in on disk, laid out as OpenGVLab/InternViT-6B-448px-V1-5 is.

Names of tensors and configuration: the repository's modeling_intern_vit.py and config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import InternVLVisionModel

from nvlm.checkpoint.format.architecture import VisionArchitecture
from nvlm.model.vision import IMAGE_MEAN, IMAGE_STD

# transformers' name -> OpenGVLab's; queries, keys and values are one tensor there.
EMBEDDINGS = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection.weight": "embeddings.patch_embedding.weight",
    "embeddings.patch_embeddings.projection.bias": "embeddings.patch_embedding.bias",
}
LAYER = {
    "attention.q_norm.weight": "attn.q_norm.weight",
    "attention.k_norm.weight": "attn.k_norm.weight",
    "attention.projection_layer.weight": "attn.proj.weight",
    "attention.projection_layer.bias": "attn.proj.bias",
    "layernorm_before.weight": "norm1.weight",
    "layernorm_after.weight": "norm2.weight",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
}


def write_vision(
    directory: Path, tower: InternVLVisionModel, architecture: VisionArchitecture
) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors into ``directory``."""
    tensors = published_tensors(tower.state_dict(), architecture.layers)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _write_json(directory / "config.json", vision_config(architecture))
    _write_json(directory / "preprocessor_config.json", preprocessor_config(architecture))


def published_tensors(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Rename the ``state`` of transformers' tower, every tensor of it."""
    tensors = {theirs: state[ours] for ours, theirs in EMBEDDINGS.items()}
    for number in range(layers):
        ours, theirs = f"encoder.layer.{number}.", f"encoder.layers.{number}."
        tensors |= {theirs + new: state[ours + old] for old, new in LAYER.items()}
        tensors[f"{theirs}attn.qkv.weight"] = torch.cat(
            [state[f"{ours}attention.{name}_proj.weight"] for name in ("q", "k", "v")]
        )
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def vision_config(architecture: VisionArchitecture) -> dict[str, Any]:
    """The fields of InternViT-6B's config.json."""
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": architecture.hidden_size,
        "image_size": architecture.image_size,
        "initializer_factor": 0.1,
        "initializer_range": 1e-10,
        "intermediate_size": architecture.ffn_hidden_size,
        "layer_norm_eps": architecture.norm_epsilon,
        "norm_type": "rms_norm",
        "num_attention_heads": architecture.heads,
        "num_channels": 3,
        "num_hidden_layers": architecture.layers,
        "patch_size": architecture.patch_size,
        "qk_normalization": True,
        "qkv_bias": False,
        "torch_dtype": "float32",
        "use_flash_attn": False,
    }


def preprocessor_config(architecture: VisionArchitecture) -> dict[str, Any]:
    """How the tower wants its pixels (bicubic resize, ImageNet statistics)."""
    return {
        "crop_size": architecture.image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "resample": 3,
        "size": architecture.image_size,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
