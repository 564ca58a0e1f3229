"""Files for Megatron-LM, against its converters' arithmetic spelt out here tensor by tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoint.build import build_combined
from tests.checkpoint.models import save_vision
from torch import Tensor

from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.huggingface.convert import convert_vision
from nvlm.checkpoint.megatron.exporting import export_megatron, rank_directory
from nvlm.checkpoint.relayout.reshard import reshard

HEAD, HIDDEN = 8, 32  # of the decoder: 4 heads in 2 groups


def load(directory: Path, rank: str) -> dict[str, Any]:
    """What Megatron's own loader gets."""
    path = directory / "iter_0000001" / rank / "model_optim_rng.pt"
    return torch.load(path, weights_only=False)


def source(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def expected_language(hf: dict[str, Tensor], rank: int, layers: range) -> dict[str, Tensor | None]:
    """tools/checkpoint of tag NVLM-1.0 on two ranks: loader_llama_mistral, then the saver."""
    model: dict[str, Tensor | None] = {}
    for number, layer in enumerate(layers):
        old, new = f"model.layers.{layer}.", f"language_model.decoder.layers.{number}."
        for kind, width in (("weight", HIDDEN), ("bias", 1)):
            q, k, v = (hf[f"{old}self_attn.{n}_proj.{kind}"] for n in "qkv")
            qkv = torch.cat(
                [
                    q.reshape(2, HEAD * 2, width),
                    k.reshape(2, HEAD, width),
                    v.reshape(2, HEAD, width),
                ],
                dim=1,
            )
            qkv = qkv.reshape(-1, width) if kind == "weight" else qkv.reshape(-1)
            model[f"{new}self_attention.linear_qkv.{kind}"] = qkv.chunk(2)[rank]
        gate, up = (hf[f"{old}mlp.{n}_proj.weight"].chunk(2)[rank] for n in ("gate", "up"))
        model |= {
            f"{new}self_attention.linear_qkv.layer_norm_weight": hf[f"{old}input_layernorm.weight"],
            f"{new}self_attention.linear_proj.weight": hf[f"{old}self_attn.o_proj.weight"].chunk(
                2, dim=1
            )[rank],
            f"{new}mlp.linear_fc1.layer_norm_weight": hf[f"{old}post_attention_layernorm.weight"],
            f"{new}mlp.linear_fc1.weight": torch.cat([gate, up]),
            f"{new}mlp.linear_fc2.weight": hf[f"{old}mlp.down_proj.weight"].chunk(2, dim=1)[rank],
        }
        for name in ("self_attention.linear_qkv", "self_attention.linear_proj"):
            model[f"{new}{name}._extra_state"] = None
        for name in ("mlp.linear_fc1", "mlp.linear_fc2"):
            model[f"{new}{name}._extra_state"] = None
    return model


def expected_vision(hf: dict[str, Tensor], rank: int) -> dict[str, Tensor | None]:
    """internvit_converter.py on two ranks: 3 heads of 8 channels, and a dummy head."""
    model: dict[str, Tensor | None] = {
        "class_token": hf["embeddings.class_embedding"],
        "conv1.weight": hf["embeddings.patch_embedding.weight"],
        "conv1.bias": hf["embeddings.patch_embedding.bias"],
        "position_embeddings.weight": hf["embeddings.position_embedding"].squeeze(0),
    }
    order = torch.tensor(
        [
            kind * 24 + head * 8 + channel
            for head in range(3)
            for kind in range(3)
            for channel in range(8)
        ]
    )
    for layer in range(2):
        old, new = f"encoder.layers.{layer}.", f"decoder.layers.{layer}."

        def padded(name: str, size: int, old: str = old) -> Tensor:
            tensor = hf[old + name]
            if name == "attn.proj.weight":
                return torch.cat([tensor, torch.zeros(24, size - 24).to(tensor)], dim=1)
            return torch.cat(
                [tensor, torch.zeros(size - len(tensor), *tensor.shape[1:]).to(tensor)]
            )

        qkv = torch.zeros(3 * 32, 24, dtype=hf[f"{old}attn.qkv.weight"].dtype)
        qkv[:72] = hf[f"{old}attn.qkv.weight"][order]
        model |= {
            f"{new}ls1": hf[f"{old}ls1"],
            f"{new}ls2": hf[f"{old}ls2"],
            f"{new}input_layernorm.weight": hf[f"{old}norm1.weight"],
            f"{new}pre_mlp_layernorm.weight": hf[f"{old}norm2.weight"],
            f"{new}self_attention.linear_qkv.weight": qkv.chunk(2)[rank],
            f"{new}self_attention.q_layernorm.weight": padded("attn.q_norm.weight", 32).chunk(2)[
                rank
            ],
            f"{new}self_attention.k_layernorm.weight": padded("attn.k_norm.weight", 32).chunk(2)[
                rank
            ],
            f"{new}self_attention.linear_proj.weight": padded("attn.proj.weight", 32).chunk(
                2, dim=1
            )[rank],
            f"{new}self_attention.linear_proj.bias": hf[f"{old}attn.proj.bias"],
            f"{new}mlp.linear_fc1.weight": hf[f"{old}mlp.fc1.weight"].chunk(2)[rank],
            f"{new}mlp.linear_fc1.bias": hf[f"{old}mlp.fc1.bias"].chunk(2)[rank],
            f"{new}mlp.linear_fc2.weight": hf[f"{old}mlp.fc2.weight"].chunk(2, dim=1)[rank],
            f"{new}mlp.linear_fc2.bias": hf[f"{old}mlp.fc2.bias"],
        }
        for name in ("self_attention.linear_qkv", "self_attention.linear_proj"):
            model[f"{new}{name}._extra_state"] = None
        for name in ("mlp.linear_fc1", "mlp.linear_fc2"):
            model[f"{new}{name}._extra_state"] = None
    return model


def expected_300m(hf: dict[str, Tensor], rank: int) -> dict[str, Tensor | None]:
    """What get_internvit300M_layer_spec builds: LayerNorms of their own (weight and bias), biases
    on all linear layers, q_layernorm and k_layernorm None. On two ranks, 4 heads of 8 channels."""
    model: dict[str, Tensor | None] = {
        "class_token": hf["embeddings.class_embedding"],
        "conv1.weight": hf["embeddings.patch_embedding.weight"],
        "conv1.bias": hf["embeddings.patch_embedding.bias"],
        "position_embeddings.weight": hf["embeddings.position_embedding"].squeeze(0),
    }
    for layer in range(2):
        old, new = f"encoder.layers.{layer}.", f"decoder.layers.{layer}."
        for kind in ("weight", "bias"):
            q, k, v = hf[f"{old}attn.qkv.{kind}"].chunk(3)
            own = slice(rank * 16, rank * 16 + 16)
            by_head = [x[own].view(2, 8, *x.shape[1:]) for x in (q, k, v)]
            mixed = torch.stack(by_head, dim=1).flatten(0, 2)
            model[f"{new}self_attention.linear_qkv.{kind}"] = mixed
            for theirs, ours in (("norm1", "input_layernorm"), ("norm2", "pre_mlp_layernorm")):
                model[f"{new}{ours}.{kind}"] = hf[f"{old}{theirs}.{kind}"]
        model |= {
            f"{new}ls1": hf[f"{old}ls1"],
            f"{new}ls2": hf[f"{old}ls2"],
            f"{new}self_attention.linear_proj.weight": hf[f"{old}attn.proj.weight"].chunk(2, 1)[
                rank
            ],
            f"{new}self_attention.linear_proj.bias": hf[f"{old}attn.proj.bias"],
            f"{new}mlp.linear_fc1.weight": hf[f"{old}mlp.fc1.weight"].chunk(2)[rank],
            f"{new}mlp.linear_fc1.bias": hf[f"{old}mlp.fc1.bias"].chunk(2)[rank],
            f"{new}mlp.linear_fc2.weight": hf[f"{old}mlp.fc2.weight"].chunk(2, 1)[rank],
            f"{new}mlp.linear_fc2.bias": hf[f"{old}mlp.fc2.bias"],
        }
        for name in ("self_attention.linear_qkv", "self_attention.linear_proj"):
            model[f"{new}{name}._extra_state"] = None
        for name in ("mlp.linear_fc1", "mlp.linear_fc2"):
            model[f"{new}{name}._extra_state"] = None
    return model


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor is None:
            assert found[name] is None, name
        else:
            assert found[name].dtype == tensor.dtype == torch.bfloat16, name
            assert torch.equal(found[name], tensor), name


def test_every_tensor_of_every_rank_and_stage(tmp_path):
    build_combined(tmp_path)
    reshard(tmp_path / "combined", tmp_path / "split", layers_per_stage=[1, 3])
    export_megatron(tmp_path / "split", tmp_path / "out")
    assert (tmp_path / "out/latest_checkpointed_iteration.txt").read_text() == "1"
    language, vision = source(tmp_path / "hf_language"), source(tmp_path / "hf_vision")
    table, head = language["model.embed_tokens.weight"], language["lm_head.weight"]
    for rank in (0, 1):
        first = load(tmp_path / "out", f"mp_rank_{rank:02d}_000")["model"]
        last = load(tmp_path / "out", f"mp_rank_{rank:02d}_001")["model"]
        expected = expected_language(language, rank, range(1))
        padded = torch.cat([table, table[-1:].expand(11, -1)])  # 101 rows to 112
        expected["language_model.embedding.word_embeddings.weight"] = padded.chunk(2)[rank]
        projector = read_part(tmp_path / "combined", rank, "vision_projection")
        expected |= {f"vision_projection.{name}": tensor for name, tensor in projector.items()}
        for name in ("linear_fc1", "linear_fc2"):
            expected[f"vision_projection.encoder.{name}._extra_state"] = None
        tower = expected_vision(vision, rank)
        expected |= {f"vision_model.{name}": tensor for name, tensor in tower.items()}
        assert_same(first, expected)
        expected = expected_language(language, rank, range(1, 4))
        padded = torch.cat([head, head[-1:].expand(11, -1)])
        expected["language_model.output_layer.weight"] = padded.chunk(2)[rank]
        expected["language_model.output_layer._extra_state"] = None
        expected["language_model.decoder.final_layernorm.weight"] = language["model.norm.weight"]
        assert_same(last, expected)


def test_a_half_alone_has_the_names_of_its_converter(tmp_path):
    build_combined(tmp_path)
    for half in ("vision", "language"):
        export_megatron(tmp_path / half, tmp_path / f"out_{half}")
    vision = source(tmp_path / "hf_vision")
    assert_same(load(tmp_path / "out_vision", "mp_rank_01")["model"], expected_vision(vision, 1))
    names = load(tmp_path / "out_language", "mp_rank_00")["model"].keys()
    assert "embedding.word_embeddings.weight" in names
    assert "decoder.final_layernorm.weight" in names
    assert "decoder.layers.3.mlp.linear_fc2._extra_state" in names


def test_the_300m_has_the_names_of_its_layer_spec(tmp_path):
    save_vision(tmp_path / "hf", like="300M", heads=4, dtype=torch.bfloat16)
    convert_vision(tmp_path / "hf", tmp_path / "core", tensor=2)
    export_megatron(tmp_path / "core", tmp_path / "out")
    for rank in (0, 1):
        model = load(tmp_path / "out", f"mp_rank_{rank:02d}")["model"]
        assert_same(model, expected_300m(source(tmp_path / "hf"), rank))


@pytest.mark.parametrize("stages", [1, 2])
def test_tied_embeddings_are_as_megatron_core_has_them(tmp_path, stages):
    """GPTModel allocates no weight for the head where the embedding is on the same stage, and its
    own on the last one of several (skip_weight_param_allocation)."""
    build_combined(tmp_path, tied=True)
    reshard(tmp_path / "combined", tmp_path / "split", pipeline=stages)
    export_megatron(tmp_path / "split", tmp_path / "out")
    table = source(tmp_path / "hf_language")["model.embed_tokens.weight"]
    padded = torch.cat([table, table[-1:].expand(11, -1)])
    for rank in (0, 1):
        names = [
            f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
            for stage in range(stages)
        ]
        contents = [load(tmp_path / "out", name) for name in names]
        first, last = contents[0]["model"], contents[-1]["model"]
        own = padded.chunk(2)[rank]
        assert torch.equal(first["language_model.embedding.word_embeddings.weight"], own)
        if stages == 1:
            assert not [name for name in last if "output_layer" in name]
        else:
            assert torch.equal(last["language_model.output_layer.weight"], own)
            assert last["language_model.output_layer._extra_state"] is None
        assert contents[0]["args"].untie_embeddings_and_output_weights is False


def test_args_say_what_a_loader_would_else_get_wrong(tmp_path):
    build_combined(tmp_path)
    reshard(tmp_path / "combined", tmp_path / "split", pipeline=4)
    export_megatron(tmp_path / "split", tmp_path / "out")
    content = load(tmp_path / "out", "mp_rank_01_003")
    assert content["checkpoint_version"] == 3.0
    assert content["iteration"] == 1
    args = content["args"]
    assert (args.rotary_base, args.rotary_percent) == (5_000_000, 1.0)
    assert (args.attention_dropout, args.hidden_dropout) == (0.0, 0.0)
    assert (args.tensor_model_parallel_size, args.pipeline_model_parallel_size) == (2, 4)
    assert (args.num_layers, args.hidden_size, args.ffn_hidden_size) == (4, 32, 48)
    assert (args.num_attention_heads, args.num_query_groups, args.kv_channels) == (4, 2, 8)
    assert (args.group_query_attention, args.add_qkv_bias, args.add_bias_linear) == (True, 1, 0)
    assert (args.normalization, args.norm_epsilon, args.swiglu) == ("RMSNorm", 1e-5, True)
    assert (args.padded_vocab_size, args.vocab_size) == (112, 101)
    assert (args.position_embedding_type, args.max_position_embeddings) == ("rope", 64)
    assert args.untie_embeddings_and_output_weights is True
    assert (args.bf16, args.fp16, args.params_dtype) == (True, False, torch.bfloat16)


def test_ranks_above_nine_have_the_names_that_megatron_looks_for():
    assert rank_directory(0, 0, 1) == "mp_rank_00"
    assert rank_directory(10, 0, 1) == "mp_rank_10"
    assert rank_directory(3, 11, 12) == "mp_rank_03_011"


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_it_mapped_or_not_and_the_bytes_are_the_same_each_time(tmp_path, mapped):
    build_combined(tmp_path, tensor=1)
    paths = []
    for out in ("one", "two"):
        export_megatron(tmp_path / "combined", tmp_path / out)
        paths.append(tmp_path / out / "iter_0000001/mp_rank_00/model_optim_rng.pt")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    model = torch.load(paths[0], weights_only=False, mmap=mapped)["model"]
    expected = read_part(tmp_path / "combined", 0, "vision_projection")
    for name, tensor in expected.items():
        assert torch.equal(model[f"vision_projection.{name}"], tensor)
