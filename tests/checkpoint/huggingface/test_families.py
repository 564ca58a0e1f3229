"""Decoders of one's own: what configuration alone brings from Hugging Face, and back.

The shapes of Qwen2.5-7B and Llama-3.1-8B, cut: heads, groups and ratios are theirs.
"""

import copy
import json
from typing import Any

import pytest
import torch
from tests.checkpoint.models import randomise, save_vision
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.huggingface.exporting import export_hf
from nvlm.checkpoint.huggingface.importing import import_hf
from nvlm.checkpoint.megatron.exporting import export_megatron
from nvlm.checkpoint.megatron.importing import ImportOptions, import_megatron
from nvlm.checkpoint.parts.projector import ProjectorParams
from nvlm.checkpoint.relayout.combine import combine
from nvlm.errors import UserError
from nvlm.launch.local import launch
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.state import load_model

LENGTH = 60  # beyond the positions at which scaled frequencies differ from others
QWEN_2_5: dict[str, Any] = {
    "hidden_size": 56,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 296,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "max_window_layers": 28,
    "max_position_embeddings": 32768,
}
LLAMA_3_1: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 448,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
# The same with frequencies that so short a row shows.
SHOWN = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED = LLAMA_3_1 | {
    "rope_theta": 100.0,
    "rope_scaling": SHOWN | {"original_max_position_embeddings": 16, "rope_type": "llama3"},
}
YI_1_5 = LLAMA_3_1 | {"rms_norm_eps": 1e-2, "rope_theta": 5e6, "rope_scaling": None}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2.5": (Qwen2Config, Qwen2ForCausalLM, QWEN_2_5),
    "llama3.1": (LlamaConfig, LlamaForCausalLM, LLAMA_3_1),
    "scaled": (LlamaConfig, LlamaForCausalLM, SCALED),
    "another epsilon": (LlamaConfig, LlamaForCausalLM, YI_1_5),
}


def save(directory, name):
    """A model of ``name`` as its repository has it: config.json of transformers 4."""
    config_class, model_class, values = MODELS[name]
    rest = {
        key: value for key, value in values.items() if key not in ("rope_theta", "rope_scaling")
    }
    rope = {"rope_type": "default"} | (values.get("rope_scaling") or {})
    rope["rope_theta"] = values["rope_theta"]
    config = config_class(
        vocab_size=101, num_hidden_layers=2, tie_word_embeddings=False, rope_parameters=rope, **rest
    )
    model = model_class(config)
    randomise(model, 1)
    model.save_pretrained(directory)
    published = json.loads((directory / "config.json").read_text())
    del published["rope_parameters"]
    (directory / "config.json").write_text(json.dumps(published | values))
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return model.eval()


def build(directory, name, tensor):
    """``directory/combined``, and transformers' decoder."""
    model = save(directory / "hf", name)
    save_vision(directory / "hf_vision", like="300M")
    convert_vision(directory / "hf_vision", directory / "vision", tensor=tensor)
    convert_language(directory / "hf", directory / "lm", tensor=tensor, vocabulary_multiple=1)
    params = ProjectorParams(init_std=0.02, seed=3)
    combine(directory / "vision", directory / "lm", directory / "combined", params)
    return model


def ids():
    return torch.randint(101, (2, LENGTH), generator=torch.Generator().manual_seed(5))


def write_logits(checkpoint, tensor, out):
    """Worker: the logits of ``ids``."""
    with parallel_mesh(GridParams(tensor=tensor)) as mesh, torch.no_grad():
        model = load_model(checkpoint, mesh, torch.float32, gather_logits=True)
        hidden = model(ids(), position_ids=torch.arange(LENGTH).expand(2, -1))
        if mesh.is_main:
            torch.save(model.language_model.lm_head(hidden)[..., :101], out)
        else:
            model.language_model.lm_head(hidden)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(tmp_path, name):
    tensor = 2 if name == "scaled" else 1
    model = build(tmp_path, name, tensor)
    launch(write_logits, tensor, tmp_path / "combined", tensor, tmp_path / "logits.pt")
    with torch.no_grad():
        expected = model(ids()).logits
    found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if name == "scaled":  # the truth depends on what is tested
        plain = copy.deepcopy(model.config)
        plain.rope_parameters = {"rope_type": "default", "rope_theta": 100.0}
        model.model.rotary_emb = type(model.model.rotary_emb)(config=plain)
        with torch.no_grad():
            assert (model(ids()).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_again(tmp_path, name):
    """For transformers, which reads the export's decoder by its own rules, and for Megatron-LM."""
    build(tmp_path, name, 2)
    architecture = read_manifest(tmp_path / "combined").architecture
    export_hf(tmp_path / "combined", tmp_path / "out", shard_bytes=1 << 30)
    back = import_hf(tmp_path / "out", tmp_path / "back", tensor=2, vocabulary_multiple=1)
    assert back.architecture == architecture
    exported = json.loads((tmp_path / "out/config.json").read_text())["llm_config"]
    config_class, _, values = MODELS[name]
    rope = {"rope_type": "default"} | (values.get("rope_scaling") or {})
    read = config_class(**exported)
    assert read.rope_parameters == rope | {"rope_theta": values["rope_theta"]}
    assert read.rms_norm_eps == values["rms_norm_eps"]
    if name == "scaled":
        with pytest.raises(UserError, match="Megatron-core has but the factor to choose"):
            export_megatron(tmp_path / "combined", tmp_path / "megatron")
        assert not (tmp_path / "megatron").exists()
        return
    export_megatron(tmp_path / "combined", tmp_path / "megatron")
    path = tmp_path / "megatron/iter_0000001/mp_rank_00/model_optim_rng.pt"
    args = torch.load(path, weights_only=False)["args"]
    scaled = name == "llama3.1"
    assert (args.use_rope_scaling, args.rope_scaling_factor) == (scaled, 8.0)
    assert args.norm_epsilon == values["rms_norm_eps"]
    back = import_megatron(tmp_path / "megatron", tmp_path / "again", ImportOptions())
    assert back.architecture == architecture
