"""The tower: dummy heads worked by hand, and Megatron's way of computing a layer with them."""

import pytest
import torch
from tests.checkpoint.models import save_vision
from torch import Tensor
from torch.nn import functional

from nvlm.checkpoint.format.architecture import VisionArchitecture
from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.huggingface.configuration import read_vision_architecture
from nvlm.checkpoint.huggingface.convert import convert_vision
from nvlm.checkpoint.parts import vision

TINY = VisionArchitecture(
    hidden_size=3, layers=1, heads=3, ffn_hidden_size=4, image_size=4, patch_size=2, norm_epsilon=1
)


def by_hand() -> dict[str, Tensor]:
    """3 heads of size 1; query, key and value row of head h are 10 + h, 20 + h and 30 + h."""
    layer = {name: torch.ones(shape) for name, shape in vision.layer_shapes(TINY).items()}
    rows = torch.tensor([10, 11, 12, 20, 21, 22, 30, 31, 32]).float()
    layer["attn.qkv.weight"] = rows[:, None].expand(-1, 3).contiguous()
    layer["attn.q_norm.weight"] = torch.tensor([40.0, 41.0, 42.0])
    layer["attn.k_norm.weight"] = torch.tensor([50.0, 51.0, 52.0])
    layer["attn.proj.weight"] = torch.tensor([60.0, 61.0, 62.0]).expand(3, -1).contiguous()
    return layer


@pytest.mark.parametrize(
    ("size", "rank", "qkv", "q_norm", "projection"),
    [
        (1, 0, [10, 20, 30, 11, 21, 31, 12, 22, 32], [40, 41, 42], [60, 61, 62]),
        (2, 0, [10, 20, 30, 11, 21, 31], [40, 41], [60, 61]),
        (2, 1, [12, 22, 32, 0, 0, 0], [42, 0], [62, 0]),
        (4, 2, [12, 22, 32], [42], [62]),
        (4, 3, [0, 0, 0], [0], [0]),
    ],
)
def test_dummy_heads_worked_by_hand(size, rank, qkv, q_norm, projection):
    core = vision.layer_to_core(by_hand(), TINY, rank, size)
    assert core["self_attention.linear_qkv.weight"][:, 0].tolist() == qkv
    assert core["self_attention.q_layernorm.weight"].tolist() == q_norm
    assert core["self_attention.k_layernorm.weight"].tolist() == [v and v + 10 for v in q_norm]
    assert core["self_attention.linear_proj.weight"][1].tolist() == projection
    assert core["self_attention.linear_proj.bias"].tolist() == [1, 1, 1]
    assert core["mlp.linear_fc1.weight"].shape == (4 // size, 3)
    assert core["mlp.linear_fc2.weight"].shape == (3, 4 // size)


@pytest.mark.parametrize(("size", "heads"), [(1, 25), (2, 26), (4, 28), (8, 32)])
def test_internvit_has_megatrons_number_of_heads(size, heads):
    tower = VisionArchitecture(
        hidden_size=25, layers=1, heads=25, ffn_hidden_size=8, image_size=4, patch_size=2,
        norm_epsilon=1,
    )  # fmt: skip
    layer = {name: torch.ones(shape) for name, shape in vision.layer_shapes(tower).items()}
    rows = vision.layer_to_core(layer, tower, 0, size)["self_attention.linear_qkv.weight"].shape[0]
    assert rows * size == 3 * heads


@pytest.mark.parametrize("like", ["6B", "300M"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_megatron_tower_on_shards_gives_transformers_output(tmp_path, size, like):
    model = save_vision(tmp_path / "hf", like=like, heads=3)
    convert_vision(tmp_path / "hf", tmp_path / "core", tensor=size)
    shape = read_vision_architecture(tmp_path / "hf")
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
        embedding = read_part(tmp_path / "core", size - 1, "vision_model.embedding")
        hidden = functional.conv2d(
            pixels, embedding["conv1.weight"], embedding["conv1.bias"], stride=6
        )
        hidden = hidden.flatten(2).transpose(1, 2)
        hidden = torch.cat([embedding["class_token"].expand(2, -1, -1), hidden], dim=1)
        hidden = hidden + embedding["position_embeddings.weight"]
        for index in range(shape.layers):
            part = f"vision_model.layer.{index:03d}"
            cores = [read_part(tmp_path / "core", rank, part) for rank in range(size)]
            hidden = megatron_layer(hidden, cores, shape)
    torch.testing.assert_close(hidden, expected, atol=2e-4, rtol=1e-5)


def megatron_layer(
    hidden: Tensor, cores: list[dict[str, Tensor]], shape: VisionArchitecture
) -> Tensor:
    """An InternViT layer as Megatron computes it on ranks with dummy heads."""
    first = cores[0]
    normed = norm(hidden, first, "input_layernorm", shape)
    mixed = [
        functional.linear(
            normed,
            core["self_attention.linear_qkv.weight"],
            core.get("self_attention.linear_qkv.bias"),
        )
        for core in cores
    ]
    rows, length, width = mixed[0].shape
    heads = width // 3 // shape.head_size
    split = [m.view(rows, length, heads, 3, shape.head_size) for m in mixed]
    q = gathered_norm([m[..., 0, :] for m in split], cores, "q", shape)
    k = gathered_norm([m[..., 1, :] for m in split], cores, "k", shape)
    output = first["self_attention.linear_proj.bias"].expand_as(hidden)
    for rank, core in enumerate(cores):
        own = (q[rank], k[rank], split[rank][..., 2, :])
        q_own, k_own, v_own = (x.transpose(1, 2) for x in own)
        context = functional.scaled_dot_product_attention(q_own, k_own, v_own)
        context = context.transpose(1, 2).flatten(2)
        output = output + functional.linear(context, core["self_attention.linear_proj.weight"])
    hidden = hidden + output * first["ls1"]
    normed = norm(hidden, first, "pre_mlp_layernorm", shape)
    output = first["mlp.linear_fc2.bias"].expand_as(hidden)
    for core in cores:
        inner = functional.linear(
            normed, core["mlp.linear_fc1.weight"], core["mlp.linear_fc1.bias"]
        )
        output = output + functional.linear(functional.gelu(inner), core["mlp.linear_fc2.weight"])
    return hidden + output * first["ls2"]


def gathered_norm(
    parts: list[Tensor], cores: list[dict[str, Tensor]], name: str, shape: VisionArchitecture
) -> list[Tensor]:
    """QK norm over all heads: squares are summed over ranks, divided by the real channels.

    Megatron's q_layernorm and k_layernorm of the 300M are None.
    """
    if f"self_attention.{name}_layernorm.weight" not in cores[0]:
        return parts
    whole = torch.cat([part.flatten(2) for part in parts], dim=-1)
    weight = torch.cat([core[f"self_attention.{name}_layernorm.weight"] for core in cores])
    normed = rms(whole, weight, shape.hidden_size, 1e-6)
    return [n.view_as(p) for n, p in zip(normed.chunk(len(parts), -1), parts, strict=True)]


def norm(hidden: Tensor, core: dict[str, Tensor], name: str, shape: VisionArchitecture) -> Tensor:
    """RMSNorm, or torch's LayerNorm where there is a bias."""
    weight, bias = core[f"{name}.weight"], core.get(f"{name}.bias")
    if bias is None:
        return rms(hidden, weight, shape.hidden_size, shape.norm_epsilon)
    return functional.layer_norm(hidden, weight.shape, weight, bias, shape.norm_epsilon)


def rms(x: Tensor, weight: Tensor, channels: int, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / channels + epsilon) * weight
