"""What the original converters write, and Megatron's loader takes, comes in too."""

import shutil

import pytest
import torch
from tests.checkpoint.build import build_combined
from tests.checkpoint.megatron.stand_in import edit, refused

from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.megatron.args import vision_from_args
from nvlm.checkpoint.megatron.exporting import export_megatron
from nvlm.checkpoint.megatron.importing import ImportOptions, import_megatron


@pytest.fixture
def exported(tmp_path):
    build_combined(tmp_path)
    export_megatron(tmp_path / "combined", tmp_path / "megatron")
    return tmp_path / "megatron"


def test_a_tower_alone_as_upstreams_converter_writes_it(tmp_path):
    """Its file holds nothing but the model: how wide a head is has to be said."""
    build_combined(tmp_path)
    export_megatron(tmp_path / "vision", tmp_path / "megatron")
    for rank in ("00", "01"):
        name = f"iter_0000001/mp_rank_{rank}/model_optim_rng.pt"
        edit(tmp_path / "megatron", lambda c: [c.pop(k) for k in list(c) if k != "model"], name)
    (tmp_path / "megatron/latest_checkpointed_iteration.txt").unlink()
    refused(
        tmp_path / "megatron", "24 channels .* 32 with dummy .* no heads of 128: give --vision-"
    )
    options = ImportOptions(vision_heads=3)
    manifest = import_megatron(tmp_path / "megatron", tmp_path / "out", options)
    assert manifest.files == read_manifest(tmp_path / "vision").files
    assert manifest.architecture == read_manifest(tmp_path / "vision").architecture


def test_a_tower_in_float32_beside_a_decoder_in_bfloat16(exported):
    """What upstream's converters leave: the same values, one of the two dtypes in the end."""

    def widen(content):
        del content["args"].nvlm
        for name, value in content["model"].items():
            if name.startswith("vision_model") and value is not None:
                content["model"][name] = value.float()

    def learn(content):
        content["model"]["vision_model.conv1.bias"][0] = 1 + 2**-20

    for rank in ("00", "01"):
        edit(exported, widen, f"iter_0000001/mp_rank_{rank}/model_optim_rng.pt")
    out, options = exported.parent / "out", {"vocabulary": 101, "vision_heads": 3}
    manifest = import_megatron(exported, out, ImportOptions(**options))
    assert manifest.dtype == "bfloat16"
    assert manifest.files == read_manifest(exported.parent / "combined").files
    for rank in ("00", "01"):
        edit(exported, learn, f"iter_0000001/mp_rank_{rank}/model_optim_rng.pt")
    shutil.rmtree(out)
    refused(exported, r"conv1\.bias is of torch\.float32 .*--dtype", **options)
    for dtype, value in (("float32", 1 + 2**-20), ("bfloat16", 1)):
        manifest = import_megatron(exported, out, ImportOptions(**options, dtype=dtype))
        bias = read_part(out, 0, "vision_model.embedding")["conv1.bias"]
        assert (manifest.dtype, bias.dtype) == (dtype, getattr(torch, dtype))
        assert bias[0].item() == value


def test_several_iterations_without_a_latest_one(exported):
    (exported / "latest_checkpointed_iteration.txt").unlink()
    (exported / "iter_0000200").mkdir()
    refused(exported, "2 iterations and no latest_.*: give one of them, such as iter_0000200")
    (exported / "iter_0000200").rmdir()
    import_megatron(exported, exported.parent / "out", ImportOptions())


@pytest.mark.parametrize(
    ("channels", "heads", "tensor", "width"),
    # InternViT's 25 heads with dummies at 8 and 4 ranks, beside decoders of other heads or none;
    # heads as wide as the decoder's.
    [(16, 25, 8, 4096), (None, 25, 4, 3584), (128, 25, 1, 3200), (64, 6, 4, 512)],
)
def test_heads_of_a_tower_that_args_do_not_describe(channels, heads, tensor, width):
    hidden = 3200 if heads == 25 else 384
    shapes = {
        "class_token": (1, 1, hidden),
        "conv1.weight": (hidden, 3, 14, 14),
        "position_embeddings.weight": (1025, hidden),
        "decoder.layers.0.self_attention.linear_proj.weight": (hidden, width // tensor),
        "decoder.layers.0.self_attention.q_layernorm.weight": (width // tensor,),
        "decoder.layers.0.mlp.linear_fc1.bias": (12800 // tensor,),
    }
    args = {"kv_channels": channels}
    tower = vision_from_args(args, shapes, layers=1, tensor=tensor, heads=None)
    assert (tower.heads, tower.image_size, tower.ffn_hidden_size) == (heads, 448, 12800)


def test_the_300m_is_told_by_its_tensors():
    """Beside a decoder of 128 channels a head, which would divide its width too."""
    layer = "decoder.layers.0."
    shapes = {
        "class_token": (1, 1, 1024),
        "conv1.weight": (1024, 3, 14, 14),
        "position_embeddings.weight": (1025, 1024),
        f"{layer}input_layernorm.bias": (1024,),
        f"{layer}self_attention.linear_qkv.bias": (384,),
        f"{layer}self_attention.linear_proj.weight": (1024, 128),
        f"{layer}mlp.linear_fc1.bias": (512,),
    }
    tower = vision_from_args({"kv_channels": 128}, shapes, layers=24, tensor=8, heads=None)
    assert (tower.heads, tower.ffn_hidden_size, tower.norm_type) == (16, 4096, "layer_norm")
    assert (tower.qkv_bias, tower.qk_norm) == (True, False)
