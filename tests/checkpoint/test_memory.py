"""Conversion holds one layer in memory, however many there are and however they are sharded."""

import json
import subprocess
import sys

import torch
from safetensors.torch import save_file
from tests.checkpoint.models import save_language

from nvlm.checkpoint.huggingface.configuration import read_language_architecture
from nvlm.checkpoint.parts import language

MIB = 1 << 20
CONVERT = """
import resource, sys
from pathlib import Path
from nvlm.checkpoint.huggingface.convert import convert_language
source, out = Path(sys.argv[1]), Path(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_language(source, out, tensor=2, vocabulary_multiple=1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def save_wide(directory, layers: int) -> int:
    """A decoder of ``layers`` layers in a single file; the bytes of a layer."""
    save_language(directory, "llama", layers=layers)
    path = directory / "config.json"
    wide = {"hidden_size": 512, "head_dim": 128, "intermediate_size": 2048}
    path.write_text(json.dumps(json.loads(path.read_text()) | wide))
    shape = read_language_architecture(directory)
    tensors = {
        "model.embed_tokens.weight": torch.ones(101, 512),
        "model.norm.weight": torch.ones(512),
        "lm_head.weight": torch.ones(101, 512),
    }
    for layer in range(layers):
        for name, size in language.layer_shapes(shape).items():
            tensors[f"model.layers.{layer}.{name}"] = torch.ones(size)
    save_file(tensors, directory / "model.safetensors")
    return sum(4 * torch.Size(size).numel() for size in language.layer_shapes(shape).values())


def peak(source, out) -> int:
    command = [sys.executable, "-c", CONVERT, str(source), str(out)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    layer = save_wide(tmp_path / "few", 2)
    save_wide(tmp_path / "many", 12)
    assert layer > 12 * MIB
    few = peak(tmp_path / "few", tmp_path / "core_few")
    many = peak(tmp_path / "many", tmp_path / "core_many")
    assert many < few + layer / 2
    assert many < 3 * layer
