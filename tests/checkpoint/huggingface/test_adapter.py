"""PEFT's own code loads an exported adapter and gives the logits of the merged export."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from tests.checkpoint.build import build_combined, with_adapter

from nvlm.checkpoint.format.adapter import TARGETS, Adapter
from nvlm.checkpoint.huggingface.exporting import export_hf
from nvlm.checkpoint.huggingface.weights import HuggingFaceWeights
from nvlm.checkpoint.relayout.merge import merge_adapter
from nvlm.errors import UserError

ADAPTER = Adapter(rank=3, alpha=7.5, targets=tuple(TARGETS))
# Runs in a process of its own: remote code goes to a cache that is fixed on import.
LOAD = """
import sys, torch
from peft import PeftModel
from transformers import AutoModel
def load(name):
    return AutoModel.from_pretrained(f"{sys.argv[1]}/{name}", trust_remote_code=True).eval()
pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
merged = load("merged_hf")
image = [merged.config.image_token_id] * 4
ids = torch.tensor([[5, 6, *image, 9, *image, 7, 8]])
model = PeftModel.from_pretrained(load("apart"), f"{sys.argv[1]}/apart/adapter")
with torch.no_grad():
    expected, found = (m(input_ids=ids, pixel_values=pixels).logits for m in (merged, model))
    with model.disable_adapter():
        base = model(input_ids=ids, pixel_values=pixels).logits
    folded = model.merge_and_unload()(input_ids=ids, pixel_values=pixels).logits
assert (base - expected).abs().max() > 0.01
torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
torch.testing.assert_close(folded, expected, atol=1e-5, rtol=1e-5)
"""


def build(directory):
    build_combined(directory, dtype=torch.float32)
    with_adapter(directory / "combined", directory / "adapted", ADAPTER)


def tensors_of(directory):
    return HuggingFaceWeights(directory).read("")


def test_exports_are_of_the_merged_model_or_of_the_base_with_the_adapter_beside(tmp_path):
    build(tmp_path)
    merge_adapter(tmp_path / "adapted", tmp_path / "merged")
    for source, out, apart in (
        ("combined", "base", False),
        ("merged", "expected", False),
        ("adapted", "folded", False),
        ("adapted", "apart", True),
    ):
        export_hf(tmp_path / source, tmp_path / out, shard_bytes=40_000, apart=apart)
    for first, second in (("base", "apart"), ("expected", "folded")):
        a, b = tensors_of(tmp_path / first), tensors_of(tmp_path / second)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (tmp_path / "folded/adapter").exists()
    config = json.loads((tmp_path / "apart/adapter/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and (config["r"], config["lora_alpha"]) == (3, 7.5)
    with safe_open(tmp_path / "apart/adapter/adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert len(names) == 4 * 7 * 2
        down = file.get_tensor(
            "base_model.model.language_model.model.layers.3.mlp.down_proj.lora_A.weight"
        )
    assert down.shape == (3, 48)


def test_peft_gives_the_logits_of_the_merged_export(tmp_path):
    build(tmp_path)
    export_hf(tmp_path / "adapted", tmp_path / "merged_hf", shard_bytes=10**9)
    export_hf(tmp_path / "adapted", tmp_path / "apart", shard_bytes=10**9, apart=True)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_adapter_to_write_apart(tmp_path):
    build_combined(tmp_path)
    with pytest.raises(UserError, match="combined has no adapter: leave --adapter out"):
        export_hf(tmp_path / "combined", tmp_path / "x", shard_bytes=10**9, apart=True)
