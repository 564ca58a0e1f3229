"""Sources that are damaged, incomplete, or another model are refused before anything is written."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.models import save_language, save_vision

from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.errors import UserError


@pytest.fixture
def sharded(tmp_path):
    save_language(tmp_path / "hf", "qwen2", shard_size="40KB")
    return tmp_path / "hf"


def refused(tmp_path, complaint, *, tensor=2):
    with pytest.raises(UserError, match=complaint):
        convert_language(tmp_path / "hf", tmp_path / "core", tensor=tensor, vocabulary_multiple=8)
    assert not list(tmp_path.glob("*core*"))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_missing_shard(sharded, tmp_path):
    sorted(sharded.glob("model-*"))[1].unlink()
    refused(tmp_path, "model-00002-of-.*safetensors is missing")


def test_short_shard(sharded, tmp_path):
    path = sorted(sharded.glob("model-*"))[1]
    path.write_bytes(path.read_bytes()[:-4])
    refused(tmp_path, "model-00002-of-.*safetensors is not whole")


def test_index_that_leads_outside(sharded, tmp_path):
    index = sharded / "model.safetensors.index.json"
    edit_json(index, lambda c: c["weight_map"].update({"lm_head.weight": "../other.safetensors"}))
    refused(tmp_path, "names '../other.safetensors', which is outside")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_index_that_is_none(sharded, tmp_path, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, "is not a safetensors index")


def test_index_that_promises_too_much(sharded, tmp_path):
    index = sharded / "model.safetensors.index.json"
    first = sorted(sharded.glob("model-*"))[0].name
    edit_json(index, lambda c: c["weight_map"].update({"model.norm.weight": first}))
    refused(tmp_path, r"lacks model\.norm\.weight")


def test_pickled_weights_are_not_read(tmp_path):
    save_language(tmp_path / "hf", "llama")
    (tmp_path / "hf/model.safetensors").rename(tmp_path / "hf/pytorch_model.bin")
    refused(tmp_path, "pickled weights are not read")


def test_missing_tensor(tmp_path):
    save_language(tmp_path / "hf", "llama")
    edit_tensors(tmp_path / "hf/model.safetensors", lambda t: t.pop("model.norm.weight"))
    refused(tmp_path, r"lacks the tensor model\.norm\.weight")


def test_layer_that_config_does_not_know(tmp_path):
    save_language(tmp_path / "hf", "llama")
    edit_json(tmp_path / "hf/config.json", lambda c: c.update(num_hidden_layers=3))
    refused(tmp_path, r"unexpected tensor model\.layers\.3\.")


def test_wrong_shape(tmp_path):
    save_language(tmp_path / "hf", "llama")
    edit_json(tmp_path / "hf/config.json", lambda c: c.update(vocab_size=100))
    refused(tmp_path, r"model\.embed_tokens\.weight .* shape \[101, 32\], not \[100, 32\]")


def test_mixed_and_unknown_dtypes(tmp_path):
    save_language(tmp_path / "hf", "llama")
    path = tmp_path / "hf/model.safetensors"
    edit_tensors(path, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].half()}))
    refused(tmp_path, r"holds F16 \(model\.norm\.weight\), F32")
    edit_tensors(path, lambda t: t.update({name: x.double() for name, x in t.items()}))
    refused(tmp_path, "holds F64")


def test_computed_rotary_buffer_of_old_repos_is_left_out(tmp_path):
    save_language(tmp_path / "hf", "llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(tmp_path / "hf/model.safetensors", lambda t: t.update({name: torch.ones(4)}))
    convert_language(tmp_path / "hf", tmp_path / "core", tensor=1, vocabulary_multiple=1)


def test_a_head_beside_tied_embeddings_is_left_out(tmp_path):
    """As transformers does: config.json says which one counts."""
    save_language(tmp_path / "hf", "qwen2", tied=True)
    stray = {"lm_head.weight": torch.ones(101, 32)}
    edit_tensors(tmp_path / "hf/model.safetensors", lambda t: t.update(stray))
    convert_language(tmp_path / "hf", tmp_path / "core", tensor=2, vocabulary_multiple=1)
    head = read_part(tmp_path / "core", 1, "language_model.head")
    assert head.keys() == {"final_layernorm.weight"}


def test_tokenizer_has_to_be_there(tmp_path):
    save_language(tmp_path / "hf", "llama")
    (tmp_path / "hf/tokenizer.json").unlink()
    refused(tmp_path, "has no tokenizer")


def test_grid_that_does_not_divide(tmp_path):
    save_language(tmp_path / "hf", "llama")
    refused(tmp_path, "tensor parallel 4 does not divide the 2 query groups", tensor=4)
    refused(tmp_path, "tensor parallel 0 should be 1 or more", tensor=0)
    save_vision(tmp_path / "vision")
    with pytest.raises(UserError, match="tensor parallel 3 does not divide the 40 vision FFN"):
        convert_vision(tmp_path / "vision", tmp_path / "core", tensor=3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "is of GPT2LMHeadModel"),
        ({"architectures": None}, "an unnamed class"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings should be true or false, not 'yes'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"num_hidden_layers": 0}, "num_hidden_layers should be a whole number"),
        ({"vocab_size": True}, "vocab_size should be a whole number"),
        ({"rms_norm_eps": None}, "rms_norm_eps should be a number"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rotary frequencies"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rotary frequencies"),
    ],
)
def test_traits_that_no_nvlm_decoder_has(tmp_path, change, complaint):
    save_language(tmp_path / "hf", "llama")
    edit_json(tmp_path / "hf/config.json", lambda c: c.update(change))
    refused(tmp_path, complaint)


def test_configuration_in_the_published_repos_form(tmp_path):
    """transformers 4 wrote the base frequency at the top level, as Yi's and Qwen2's repos have."""
    save_language(tmp_path / "hf", "llama")
    edit_json(tmp_path / "hf/config.json", lambda c: c.pop("rope_parameters"))
    old = {"rope_theta": 5000000.0, "rope_scaling": None, "torch_dtype": "bfloat16"}
    edit_json(tmp_path / "hf/config.json", lambda c: c.update(old))
    convert_language(tmp_path / "hf", tmp_path / "core", tensor=1, vocabulary_multiple=1)
    decoder = read_manifest(tmp_path / "core").architecture.language
    assert decoder is not None
    assert (decoder.rope_theta, decoder.norm_epsilon) == (5e6, 1e-5)


def test_source_is_remembered(tmp_path):
    save_language(tmp_path / "hf", "llama")
    note = {"repo": "NousResearch/Nous-Hermes-2-Yi-34B", "revision": "fcb0a88"}
    (tmp_path / "hf/source.json").write_text(json.dumps(note))
    manifest = convert_language(tmp_path / "hf", tmp_path / "core", tensor=1, vocabulary_multiple=1)
    (source,) = manifest.sources
    assert (source.part, source.repo, source.revision) == (
        "language_model",
        note["repo"],
        note["revision"],
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architectures": ["CLIPVisionModel"]}, "is of CLIPVisionModel"),
        ({"qk_normalization": None}, "qk_normalization should be true or false, not None"),
        ({"qkv_bias": 1}, "qkv_bias should be true or false, not 1"),
        ({"norm_type": "batch_norm"}, "norm_type 'batch_norm' is none of rms_norm, layer_norm"),
        # What config.json says and the weights don't have.
        ({"qk_normalization": False}, r"unexpected tensor encoder\.layers\.0\.attn\.k_norm"),
        ({"qkv_bias": True}, r"lacks the tensor encoder\.layers\.0\.attn\.qkv\.bias"),
        ({"norm_type": "layer_norm"}, r"lacks the tensor encoder\.layers\.0\.norm1\.bias"),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"image_size": 18}, "an even number of patches"),
    ],
)
def test_traits_that_no_internvit_has(tmp_path, change, complaint):
    save_vision(tmp_path / "hf")
    edit_json(tmp_path / "hf/config.json", lambda c: c.update(change))
    with pytest.raises(UserError, match=complaint):
        convert_vision(tmp_path / "hf", tmp_path / "core", tensor=1)


def test_the_6bs_repo_does_not_name_its_norm(tmp_path):
    save_vision(tmp_path / "hf")
    edit_json(tmp_path / "hf/config.json", lambda c: c.pop("norm_type"))
    manifest = convert_vision(tmp_path / "hf", tmp_path / "core", tensor=1)
    assert manifest.architecture.vision is not None
    assert manifest.architecture.vision.norm_type == "rms_norm"


def test_stray_norm_bias_does_not_pass_for_the_weight(tmp_path):
    """Upstream's converter lets it overwrite the norm's weight."""
    save_vision(tmp_path / "hf")
    stray = {"encoder.layers.0.norm1.bias": torch.zeros(24)}
    edit_tensors(tmp_path / "hf/model.safetensors", lambda t: t.update(stray))
    with pytest.raises(UserError, match=r"unexpected tensor encoder\.layers\.0\.norm1\.bias"):
        convert_vision(tmp_path / "hf", tmp_path / "core", tensor=2)
