"""Random heads, groups, layers, vocabularies and grids, against an oracle of a few plain lines.

Every element of a layer is its own number, so that a wrong row or column can't go unseen.
"""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.checkpoint.format.layout import Grid, padded_rows, part_names
from nvlm.checkpoint.format.sharding import reshard
from nvlm.checkpoint.megatron.names import megatron_name, stage_parts
from nvlm.checkpoint.parts import language, vision

small = st.integers(1, 3)


@st.composite
def decoders(draw) -> tuple[LanguageArchitecture, int]:
    """A decoder, and a tensor-parallel size that divides it."""
    size, head = draw(st.integers(1, 4)), draw(small)
    groups = size * draw(small)
    heads = groups * draw(small)
    decoder = LanguageArchitecture(
        family=draw(st.sampled_from(["llama", "qwen2"])),
        hidden_size=heads * head,
        layers=draw(st.integers(1, 7)),
        heads=heads,
        query_groups=groups,
        ffn_hidden_size=size * draw(small),
        norm_epsilon=1e-5,
        rope_theta=1e4,
        vocabulary=draw(st.integers(1, 40)),
        max_positions=8,
    )
    return decoder, size


def numbered(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    layer, first = {}, 0
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        layer[name] = torch.arange(first, first + count).reshape(shape)
        first += count
    return layer


@given(decoders())
def test_qkv_rows_follow_their_query_group(case):
    """Row by row: rank, group on it, place in it, channel of the head."""
    decoder, size = case
    layer = numbered(language.layer_shapes(decoder))
    head, per_group = decoder.head_size, decoder.heads // decoder.query_groups
    own = decoder.query_groups // size
    for rank in range(size):
        shard = language.slice_layer(layer, decoder, rank, size)
        core = language.layer_to_core(shard, decoder, size)
        for kind in ("weight", "bias") if decoder.family == "qwen2" else ("weight",):
            expected = []
            for group in range(rank * own, (rank + 1) * own):
                for place in range(per_group):
                    start = (group * per_group + place) * head
                    expected += list(layer[f"self_attn.q_proj.{kind}"][start : start + head])
                for name in "kv":
                    rows = layer[f"self_attn.{name}_proj.{kind}"]
                    expected += list(rows[group * head : (group + 1) * head])
            assert torch.equal(core[f"self_attention.linear_qkv.{kind}"], torch.stack(expected))
        width = decoder.ffn_hidden_size // size
        span = range(rank * width, (rank + 1) * width)
        gates = [layer[f"mlp.{n}_proj.weight"][i] for n in ("gate", "up") for i in span]
        assert torch.equal(core["mlp.linear_fc1.weight"], torch.stack(gates))
        columns = torch.stack([layer["mlp.down_proj.weight"][:, i] for i in span], dim=1)
        assert torch.equal(core["mlp.linear_fc2.weight"], columns)
        back = language.layer_to_hf(core, decoder, size)
        assert all(torch.equal(back[name], shard[name]) for name in shard)


@given(st.integers(1, 9), small, st.integers(1, 5), small)
def test_heads_of_the_tower_go_round_whole(heads, head, size, ffn):
    tower = VisionArchitecture(
        hidden_size=heads * head,
        layers=1,
        heads=heads,
        ffn_hidden_size=ffn * size,
        image_size=4,
        patch_size=2,
        norm_epsilon=1e-6,
    )
    layer = numbered(vision.layer_shapes(tower))
    shards = [vision.layer_to_core(layer, tower, rank, size) for rank in range(size)]
    count = -(-heads // size)
    thirds = layer["attn.qkv.weight"].chunk(3)
    for rank, core in enumerate(shards):
        expected = []
        for index in range(rank * count, (rank + 1) * count):
            rows = slice(index * head, (index + 1) * head)
            zeros = torch.zeros(head, tower.hidden_size, dtype=torch.long)
            expected += [third[rows] if index < heads else zeros for third in thirds]
        assert torch.equal(core["self_attention.linear_qkv.weight"], torch.cat(expected))
    back = vision.layer_to_hf(shards, tower)
    assert all(torch.equal(back[name], layer[name]) for name in layer)
    padded = vision.add_dummy_heads(layer, tower, 7)
    assert padded["attn.qkv.weight"].shape[0] == 3 * (heads + 7) * head
    back = vision.drop_dummy_heads(padded, tower, 7)
    assert all(torch.equal(back[name], layer[name]) for name in layer)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_vocabulary_is_padded_and_moved_row_by_row(rows, multiple, before, after):
    padded = padded_rows(rows, multiple=multiple, tensor=before)
    assert padded % (multiple * before) == 0 and 0 <= padded - rows < multiple * before
    table = torch.arange(rows)[:, None]
    shards = [language.vocabulary_shard(table, padded, rank, before) for rank in range(before)]
    expected = [min(row, rows - 1) for row in range(padded)]
    assert torch.cat(shards)[:, 0].tolist() == expected
    more = -(-padded // after) * after
    moved = [
        torch.cat(language.vocabulary_rows(shards, more // after * r, more // after * (r + 1)))
        for r in range(after)
    ]
    assert torch.cat(moved)[:, 0].tolist() == [min(row, rows - 1) for row in range(more)]


@given(st.integers(1, 6), st.integers(1, 6), small, st.sampled_from([0, 1]))
def test_shards_of_any_number_of_ranks_become_those_of_any_other(before, after, factor, dimension):
    whole = torch.arange(before * after * factor * 2)
    whole = whole.reshape(-1, 2) if dimension == 0 else whole.reshape(2, -1)
    shards = whole.chunk(before, dim=dimension)
    for rank, expected in enumerate(whole.chunk(after, dim=dimension)):
        assert torch.equal(reshard(shards, dimension, rank, after, "x"), expected)


@given(decoders(), st.data())
def test_stages_share_every_part_out_once(case, data):
    """Layers are numbered from 0 on each stage; ends are where Megatron looks for them."""
    decoder, _ = case
    cuts = data.draw(st.sets(st.integers(1, max(1, decoder.layers - 1)), max_size=3))
    edges = [0, *sorted(cut for cut in cuts if cut < decoder.layers), decoder.layers]
    counts = tuple(b - a for a, b in pairwise(edges))
    grid = Grid(tensor=1, pipeline=len(counts), layers_per_stage=counts)
    architecture = Architecture(language=decoder)
    seen = []
    for stage, count in enumerate(counts):
        parts = stage_parts(architecture, grid, stage)
        seen += [part for part, _ in parts]
        numbers = [number for part, number in parts if ".layer." in part]
        assert numbers == list(range(count))
        names = {part: megatron_name(architecture, part, n, "x") for part, n in parts if n}
        assert all(
            name == f"decoder.layers.{n}.x"
            for (_, n), name in zip([p for p in parts if p[1]], names.values(), strict=True)
        )
        kinds = {part.split(".")[1] for part, _ in parts}
        assert ("embedding" in kinds) == (stage == 0)
        assert ("head" in kinds) == (stage == len(counts) - 1)
    assert sorted(seen) == sorted(part_names(architecture))
