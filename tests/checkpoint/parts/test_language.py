"""Decoder layers: small cases worked by hand, and Megatron's way of computing a layer."""

import pytest
import torch
from tests.checkpoint.models import save_language
from torch import Tensor
from torch.nn import functional

from nvlm.checkpoint.format.architecture import LanguageArchitecture
from nvlm.checkpoint.huggingface.configuration import read_language_architecture
from nvlm.checkpoint.parts import language


def architecture(
    *, family: str = "qwen2", heads: int = 4, groups: int = 2, head: int = 1, ffn: int = 4
) -> LanguageArchitecture:
    return LanguageArchitecture(
        family=family,
        hidden_size=heads * head,
        layers=1,
        heads=heads,
        query_groups=groups,
        ffn_hidden_size=ffn,
        norm_epsilon=1e-5,
        rope_theta=1e4,
        vocabulary=5,
        max_positions=8,
    )


def numbered(model: LanguageArchitecture) -> dict[str, Tensor]:
    """A layer whose elements are all different."""
    layer, first = {}, 0
    for name, shape in language.layer_shapes(model).items():
        count = int(torch.Size(shape).numel())
        layer[name] = torch.arange(first, first + count).float().reshape(shape)
        first += count
    return layer


def by_hand() -> dict[str, Tensor]:
    """4 heads of size 1 in 2 groups; row h of the queries is filled with 10 + h, and so on."""
    layer = {name: torch.zeros(s) for name, s in language.layer_shapes(architecture()).items()}
    for name, values in {"q": (10, 11, 12, 13), "k": (20, 21), "v": (30, 31)}.items():
        rows = torch.tensor(values).float()
        layer[f"self_attn.{name}_proj.weight"] = rows[:, None].expand(-1, 4)
        layer[f"self_attn.{name}_proj.bias"] = rows + 0.5
    layer["mlp.gate_proj.weight"] = torch.tensor([40, 41, 42, 43]).float()[:, None].expand(-1, 4)
    layer["mlp.up_proj.weight"] = torch.tensor([50, 51, 52, 53]).float()[:, None].expand(-1, 4)
    layer["self_attn.o_proj.weight"] = torch.tensor([60, 61, 62, 63]).float().expand(4, -1)
    layer["mlp.down_proj.weight"] = torch.tensor([70, 71, 72, 73]).float().expand(4, -1)
    return layer


@pytest.mark.parametrize(
    ("size", "rank", "qkv", "fc1", "projection", "fc2"),
    [
        (
            1,
            0,
            [10, 11, 20, 30, 12, 13, 21, 31],
            [40, 41, 42, 43, 50, 51, 52, 53],
            [60, 61, 62, 63],
            [70, 71, 72, 73],
        ),
        (2, 0, [10, 11, 20, 30], [40, 41, 50, 51], [60, 61], [70, 71]),
        (2, 1, [12, 13, 21, 31], [42, 43, 52, 53], [62, 63], [72, 73]),
    ],
)
def test_layout_worked_by_hand(size, rank, qkv, fc1, projection, fc2):
    model = architecture()
    shard = language.slice_layer(by_hand(), model, rank, size)
    core = language.layer_to_core(shard, model, size)
    assert core["self_attention.linear_qkv.weight"][:, 0].tolist() == qkv
    assert core["self_attention.linear_qkv.bias"].tolist() == [value + 0.5 for value in qkv]
    assert core["mlp.linear_fc1.weight"][:, 0].tolist() == fc1
    assert core["self_attention.linear_proj.weight"][0].tolist() == projection
    assert core["mlp.linear_fc2.weight"][0].tolist() == fc2


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(("heads", "groups", "size"), [(8, 4, 4), (6, 2, 2), (3, 3, 3), (5, 1, 1)])
def test_there_and_back(family, heads, groups, size):
    model = architecture(family=family, heads=heads, groups=groups, head=2, ffn=12)
    whole = numbered(model)
    for rank in range(size):
        shard = language.slice_layer(whole, model, rank, size)
        back = language.layer_to_hf(language.layer_to_core(shard, model, size), model, size)
        assert back.keys() == shard.keys() == language.layer_shapes(model).keys()
        assert all(torch.equal(back[name], shard[name]) for name in shard)


@pytest.mark.parametrize(
    ("padded", "size", "rank", "rows"),
    [
        (8, 2, 0, [0, 1, 2, 3]),
        (8, 2, 1, [4, 4, 4, 4]),
        (12, 3, 2, [4, 4, 4, 4]),  # a rank that holds padding alone
        (5, 1, 0, [0, 1, 2, 3, 4]),
    ],
)
def test_padding_repeats_the_last_row(padded, size, rank, rows):
    table = torch.arange(5).float()[:, None].expand(-1, 3)
    shard = language.vocabulary_shard(table, padded, rank, size)
    assert shard.shape == (padded // size, 3)
    assert shard[:, 0].tolist() == rows


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("size", [1, 2])
def test_megatron_layer_on_shards_gives_transformers_output(tmp_path, family, size):
    model = save_language(tmp_path, family, layers=1)
    shape = read_language_architecture(tmp_path)
    whole = dict(model.model.layers[0].named_parameters())
    cores = [
        language.layer_to_core(
            {n: t.detach() for n, t in language.slice_layer(whole, shape, rank, size).items()},
            shape,
            size,
        )
        for rank in range(size)
    ]
    inputs = torch.randn(2, 7, shape.hidden_size, generator=torch.Generator().manual_seed(0))
    rotary = model.model.rotary_emb(inputs, torch.arange(7)[None])
    causal = torch.full((7, 7), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        expected = model.model.layers[0](inputs, attention_mask=causal, position_embeddings=rotary)
        actual = megatron_layer(inputs, cores, shape, rotary)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


def megatron_layer(
    inputs: Tensor,
    cores: list[dict[str, Tensor]],
    shape: LanguageArchitecture,
    rotary: tuple[Tensor, Tensor],
) -> Tensor:
    """A decoder layer as Megatron-core computes it: each rank its groups, sums in between."""
    size = len(cores)
    attention = sum(attend(inputs, core, shape, size, rotary) for core in cores)
    hidden = inputs + attention
    output = torch.zeros_like(hidden)
    for core in cores:
        normed = rms_norm(hidden, core["mlp.linear_fc1.layer_norm_weight"], shape.norm_epsilon)
        gate, up = functional.linear(normed, core["mlp.linear_fc1.weight"]).chunk(2, dim=-1)
        output += functional.linear(functional.silu(gate) * up, core["mlp.linear_fc2.weight"])
    return hidden + output


def attend(
    inputs: Tensor,
    core: dict[str, Tensor],
    shape: LanguageArchitecture,
    size: int,
    rotary: tuple[Tensor, Tensor],
) -> Tensor:
    rows, length, _ = inputs.shape
    weight = core["self_attention.linear_qkv.layer_norm_weight"]
    mixed = functional.linear(
        rms_norm(inputs, weight, shape.norm_epsilon),
        core["self_attention.linear_qkv.weight"],
        core.get("self_attention.linear_qkv.bias"),
    )
    queries = shape.heads // shape.query_groups
    grouped = mixed.view(rows, length, shape.query_groups // size, queries + 2, shape.head_size)
    q, k, v = grouped.split([queries, 1, 1], dim=3)
    q, k, v = (x.expand(-1, -1, -1, queries, -1).flatten(2, 3).transpose(1, 2) for x in (q, k, v))
    q, k = rotate(q, rotary), rotate(k, rotary)
    context = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return functional.linear(
        context.transpose(1, 2).flatten(2), core["self_attention.linear_proj.weight"]
    )


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, epsilon)
