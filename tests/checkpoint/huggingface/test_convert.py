"""Conversion against transformers: the same weights have to give the same outputs."""

import pytest
import torch
from tests.checkpoint.models import save_language, save_vision

from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.manifest import check_digests, read_manifest
from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.parts import language
from nvlm.checkpoint.parts.vision import read_vision_tower


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_language_shards_hold_every_tensor_of_transformers(tmp_path, family, tensor):
    model = save_language(tmp_path / "hf", family, shard_size="40KB")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    convert_language(tmp_path / "hf", tmp_path / "core", tensor=tensor, vocabulary_multiple=8)
    manifest = read_manifest(tmp_path / "core")
    check_digests(tmp_path / "core", manifest)
    architecture = manifest.architecture.language
    assert architecture is not None
    state, seen = model.state_dict(), set()
    for index in range(4):
        shards = [
            language.layer_to_hf(
                read_part(tmp_path / "core", rank, f"language_model.layer.{index:03d}"),
                architecture,
                tensor,
            )
            for rank in range(tensor)
        ]
        for name in shards[0]:
            full = state[f"model.layers.{index}.{name}"]
            seen.add(f"model.layers.{index}.{name}")
            if "norm" in name:
                parts = [full] * tensor
            else:
                row = name in {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
                parts = full.chunk(tensor, dim=1 if row else 0)
            for shard, part in zip(shards, parts, strict=True):
                assert torch.equal(shard[name], part), name
    assert len(seen) == len([name for name in state if name.startswith("model.layers.")])


@pytest.mark.parametrize("like", ["6B", "300M"])
@pytest.mark.parametrize("tensor", [1, 2, 4, 5])
def test_tower_comes_back_whole_from_any_number_of_ranks(tmp_path, tensor, like):
    model = save_vision(tmp_path / "hf", like=like)
    convert_vision(tmp_path / "hf", tmp_path / "core", tensor=tensor)
    state = read_vision_tower(tmp_path / "core")
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor_ in expected.items():
        assert torch.equal(state[name], tensor_), name
