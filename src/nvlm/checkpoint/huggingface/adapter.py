"""An adapter in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``.

Written by hand, since PEFT is no dependency of the pipeline: the keys are those of its LoraConfig,
and names have its prefix before those of the model that is adapted, here NVLM_D's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from nvlm.atomic import write_text
from nvlm.checkpoint.format.adapter import Adapter, adapter_path
from nvlm.checkpoint.format.files import bytes_of, read_tensors, safetensors_header
from nvlm.checkpoint.format.layout import LANGUAGE
from nvlm.checkpoint.format.manifest import Manifest

PREFIX = f"base_model.model.{LANGUAGE}.model.layers"


def export_adapter(source: Path, directory: Path, manifest: Manifest) -> None:
    """Write the adapter of the checkpoint ``source`` as the new ``directory``."""
    assert manifest.adapter is not None and manifest.architecture.language is not None
    matrices: dict[str, Tensor] = {}  # mapped from their files, not read yet
    for layer in range(manifest.architecture.language.layers):
        for name, matrix in read_tensors(source / adapter_path(layer)).items():
            matrices[f"{PREFIX}.{layer}.{name}.weight"] = matrix
    directory.mkdir()
    text = json.dumps(peft_config(manifest.adapter), indent=2, sort_keys=True)
    write_text(directory / "adapter_config.json", text + "\n")
    with (directory / "adapter_model.safetensors").open("xb") as file:
        file.write(safetensors_header(matrices, {"format": "pt"}))
        for matrix in matrices.values():
            file.write(bytes_of(matrix))


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """``adapter_config.json``; what is left out has PEFT's default, which is what we do."""
    return {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.targets),
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
    }
