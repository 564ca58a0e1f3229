"""NVLM_D directories: transformers loads them and gives the logits that our own model gives."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.checkpoint.build import build_combined
from tests.checkpoint.models import save_language, save_vision

from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.manifest import check_digests, read_manifest
from nvlm.checkpoint.huggingface.exporting import export_hf
from nvlm.checkpoint.huggingface.importing import import_hf
from nvlm.checkpoint.parts import projector
from nvlm.checkpoint.verify.compare import compare_with_source
from nvlm.errors import UserError
from nvlm.model.language import Stage
from nvlm.model.nvlm import NVLM
from nvlm.model.vision import IMAGE_MEAN, IMAGE_STD

# Runs in a process of its own: remote code goes to a cache that is fixed on import.
LOAD = """
import sys, torch
from pathlib import Path
from transformers import AutoModel, AutoTokenizer
for directory in map(Path, sys.argv[1:]):
    inputs = torch.load(directory / "inputs.pt")
    model, problems = AutoModel.from_pretrained(
        directory / "out", trust_remote_code=True, output_loading_info=True
    )
    assert not any(problems.values()), problems
    tokenizer = AutoTokenizer.from_pretrained(directory / "out", trust_remote_code=True)
    assert tokenizer.convert_tokens_to_ids("<|vision_pad|>") == model.config.image_token_id
    ids = inputs["ids"].masked_fill(inputs["image"], model.config.image_token_id)
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, pixel_values=inputs["pixels"]).logits
    new = model.generate(ids, inputs["pixels"], max_new_tokens=2, do_sample=False)
    assert new.shape == (1, 2) and new[0, 0] == logits[0, -1].argmax()
    names = type(model).__name__, type(model.config).__name__, type(model.language_model).__name__
    ends = model.get_output_embeddings(), model.get_input_embeddings()
    tied = ends[0].weight is ends[1].weight
    torch.save({"logits": logits, "names": names, "tied": tied}, directory / "outputs.pt")
    for asked in (torch.bfloat16, torch.float32):
        model = AutoModel.from_pretrained(directory / "out", trust_remote_code=True, dtype=asked)
        assert {parameter.dtype for parameter in model.parameters()} == {asked}, asked
"""


def load_in_transformers(directories: list[Path], scratch: Path) -> list[dict[str, Any]]:
    """What transformers makes of ``out`` and ``inputs.pt`` in each directory."""
    environment = {
        **os.environ,
        "HF_HOME": str(scratch / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", LOAD, *map(str, directories)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return [torch.load(directory / "outputs.pt") for directory in directories]


def export_with_logits(
    directory: Path, family: str, tower: str, tied: bool = False
) -> torch.Tensor:
    """An export in ``directory``, inputs beside it, and the logits that our own model gives."""
    directory.mkdir()
    manifest = build_combined(directory, family=family, dtype=torch.float32, tower=tower, tied=tied)
    export_hf(directory / "combined", directory / "out", shard_bytes=40_000)
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=generator)
    # Two tiles of 4 visual tokens each, between text.
    ids = torch.tensor([[5, 6, *[0] * 4, 9, *[0] * 4, 7, 8]])
    places = torch.tensor([[-1, -1, 0, 1, 2, 3, -1, 4, 5, 6, 7, -1, -1]])
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))
    inputs = {"ids": ids, "image": places >= 0, "pixels": (tiles / 255 - mean) / std}
    torch.save(inputs, directory / "inputs.pt")
    model = NVLM(manifest.architecture, 101, Stage(first=0, last=4))
    assert model.vision_model is not None and model.vision_projection is not None
    model.vision_model.load_state_dict(save_vision(directory / "tower", like=tower).state_dict())
    model.language_model.load_state_dict(
        save_language(directory / "lm", family, tied=tied).state_dict()
    )
    cores = [read_part(directory / "combined", rank, "vision_projection") for rank in (0, 1)]
    whole = {
        name: torch.cat([core[name] for core in cores], projector.SPLIT[name])
        if name in projector.SPLIT
        else cores[0][name]
        for name in cores[0]
    }
    model.vision_projection.load_state_dict(projector.to_model(whole))
    with torch.no_grad():
        hidden = model(
            ids,
            position_ids=torch.arange(13)[None],
            segment_ids=torch.ones_like(ids),
            visual_index=places,
            features=model.encode_tiles(tiles).flatten(0, 1)[None],
        )
        return model.language_model.lm_head(hidden)


def test_transformers_gives_our_logits(tmp_path):
    kinds = [("qwen2", "300M", False), ("llama", "6B", False), ("qwen2", "300M", True)]
    directories = [tmp_path / str(number) for number in range(len(kinds))]
    expected = [
        export_with_logits(directory, *kind)
        for directory, kind in zip(directories, kinds, strict=True)
    ]
    found = load_in_transformers(directories, tmp_path)
    assert [outputs["names"] for outputs in found] == [
        ("NVLM_D_Model", "NVLM_D_Config", "Qwen2ForCausalLM"),
        ("NVLM_D_Yi_Model", "NVLM_D_Yi_Config", "LlamaForCausalLM"),
        ("NVLM_D_Model", "NVLM_D_Config", "Qwen2ForCausalLM"),
    ]
    assert [outputs["tied"] for outputs in found] == [False, False, True]
    for outputs, logits in zip(found, expected, strict=True):
        torch.testing.assert_close(outputs["logits"], logits, atol=1e-4, rtol=1e-4)


def test_layout_is_the_published_repos(tmp_path):
    build_combined(tmp_path)
    export_hf(tmp_path / "combined", tmp_path / "out", shard_bytes=30_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [
        f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))
    ]
    assert len(files) > 3
    shapes, total = {}, 0
    for file in files:
        with safe_open(tmp_path / "out" / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():  # noqa: SIM118
                assert index["weight_map"][name] == file
                shapes[name] = tuple(opened.get_tensor(name).shape)
                total += opened.get_tensor(name).nbytes
        assert (tmp_path / "out" / file).stat().st_size < 30_000 + 2_000
    assert index["metadata"]["total_size"] == total
    # 3 heads of 8 channels and 7 dummy ones; facts of the published modeling code.
    layer = "vision_model.encoder.layers.1."
    assert shapes[f"{layer}attn.qkv.weight"] == (3 * 80, 24)
    assert shapes[f"{layer}attn.q_norm.weight"] == shapes[f"{layer}attn.k_norm.weight"] == (80,)
    assert shapes[f"{layer}attn.proj.weight"] == (24, 80)
    assert shapes["vision_model.embeddings.position_embedding"] == (1, 17, 24)
    assert shapes["vision_model.embeddings.class_embedding"] == (1, 1, 24)
    assert shapes["mlp1.0.bias"] == (96,)
    assert (shapes["mlp1.1.weight"], shapes["mlp1.3.weight"]) == ((48, 96), (32, 48))
    assert shapes["language_model.model.embed_tokens.weight"] == (101, 32)
    assert shapes["language_model.lm_head.weight"] == (101, 32)
    assert "language_model.model.layers.3.self_attn.q_proj.bias" in shapes
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["NVLM_D"]
    assert config["auto_map"]["AutoConfig"] == "configuration_nvlm_d.NVLM_D_Config"
    assert config["llm_config"]["architectures"] == ["Qwen2ForCausalLM"]
    assert config["llm_config"]["vocab_size"] == 101
    assert config["llm_config"]["rope_theta"] == 5e6
    assert (config["vision_config"]["num_attention_heads"], config["ps_version"]) == (3, "v2")
    preprocessor = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert (preprocessor["crop_size"], preprocessor["resample"]) == (24, 3)


def test_dummy_heads_are_zeros_in_every_third(tmp_path):
    build_combined(tmp_path, tensor=1)
    export_hf(tmp_path / "combined", tmp_path / "out", shard_bytes=1 << 30)
    with safe_open(tmp_path / "out/model-00001-of-00001.safetensors", framework="pt") as opened:
        layer = "vision_model.encoder.layers.0.attn."
        qkv = opened.get_tensor(f"{layer}qkv.weight").view(3, 80, 24)
        norm = opened.get_tensor(f"{layer}q_norm.weight")
        projection = opened.get_tensor(f"{layer}proj.weight")
    assert not qkv[:, 24:].any() and qkv[:, :24].all(-1).any(-1).all()
    assert not norm[24:].any() and not projection[:, 24:].any()


@pytest.mark.parametrize(
    ("family", "tower", "tied"), [("llama", "300M", False), ("qwen2", "6B", True)]
)
@pytest.mark.parametrize("tensor", [1, 2])
def test_out_and_in_again(tmp_path, family, tower, tied, tensor):
    build_combined(tmp_path, family=family, tensor=tensor, tower=tower, tied=tied)
    export_hf(tmp_path / "combined", tmp_path / "out", shard_bytes=40_000)
    for half in ("vision", "language"):
        compared = list(
            compare_with_source(
                tmp_path / "out",
                tmp_path / f"hf_{half}",
                f"{half}_model",
                read_manifest(tmp_path / "combined").architecture,
            )
        )
        assert len(compared) > 20 and not any(c.difference for c in compared)
    manifest = import_hf(tmp_path / "out", tmp_path / "back", tensor=tensor, vocabulary_multiple=8)
    check_digests(tmp_path / "back", manifest)
    expected = read_manifest(tmp_path / "combined")
    assert manifest.architecture == expected.architecture
    assert manifest.vocabulary == expected.vocabulary
    assert manifest.files == expected.files  # the tokenizer as it was trained with, too


def test_published_configuration_is_read(tmp_path):
    """nvidia/NVLM-D-72B stretches rotary frequencies, and calls its Qwen2 decoder a llama."""
    build_combined(tmp_path)
    export_hf(tmp_path / "combined", tmp_path / "out", shard_bytes=1 << 30)
    path = tmp_path / "out/config.json"
    config = json.loads(path.read_text())
    config["llm_config"] |= {"rope_scaling": {"type": "dynamic", "factor": 3.0}}
    config["llm_config"]["model_type"] = "llama"
    del config["vision_config"]["num_dummy_heads"], config["image_token_id"]
    path.write_text(json.dumps(config))
    import_hf(tmp_path / "out", tmp_path / "back", tensor=2, vocabulary_multiple=8)
    config["llm_config"]["rope_scaling"]["type"] = "linear"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="scales rotary frequencies"):
        import_hf(tmp_path / "out", tmp_path / "no", tensor=2, vocabulary_multiple=8)
    config["architectures"] = ["InternVLChatModel"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="not of NVLM_D"):
        import_hf(tmp_path / "out", tmp_path / "no", tensor=2, vocabulary_multiple=8)


def test_one_half_is_no_model_to_export(tmp_path):
    build_combined(tmp_path)
    for half in ("vision", "language"):
        with pytest.raises(UserError, match="one half of a model"):
            export_hf(tmp_path / half, tmp_path / "out", shard_bytes=1)
    with pytest.raises(UserError, match="should be 1 or more"):
        export_hf(tmp_path / "combined", tmp_path / "out", shard_bytes=0)
    assert not list(tmp_path.glob("*out*"))
