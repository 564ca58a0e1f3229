"""The vision stand-in: its layout, its labels, its first values, and that builds repeat."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nvlm.checkpoint.format.architecture import VisionArchitecture
from nvlm.data.packaged import digits, easy_vqa
from nvlm.model.vision import build_tower
from nvlm.standin.pictures import draw_numbers, load_shapes
from nvlm.standin.training import Training, learning_rate_factor
from nvlm.standin.vision import cosine_filters, sine_positions, train_vision
from nvlm.standin.vision_layout import published_tensors, write_vision

SMALL = VisionArchitecture(
    hidden_size=24,
    layers=2,
    heads=3,
    ffn_hidden_size=48,
    image_size=48,
    patch_size=6,
    norm_epsilon=1e-6,
)
QUICK = Training(steps=2, batch=8, matrix_lr=0.02, lr=2e-3, seed=5)
# Names and shapes in OpenGVLab/InternViT-6B-448px-V1-5 at 24 channels, 64 patches, FFN 48.
LAYER = {
    "attn.k_norm.weight": (24,),
    "attn.proj.bias": (24,),
    "attn.proj.weight": (24, 24),
    "attn.q_norm.weight": (24,),
    "attn.qkv.weight": (72, 24),
    "ls1": (24,),
    "ls2": (24,),
    "mlp.fc1.bias": (48,),
    "mlp.fc1.weight": (48, 24),
    "mlp.fc2.bias": (24,),
    "mlp.fc2.weight": (24, 48),
    "norm1.weight": (24,),
    "norm2.weight": (24,),
}
EMBEDDINGS = {
    "embeddings.class_embedding": (1, 1, 24),
    "embeddings.patch_embedding.bias": (24,),
    "embeddings.patch_embedding.weight": (24, 3, 6, 6),
    "embeddings.position_embedding": (1, 65, 24),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vision")
    write_vision(directory, train_vision(SMALL, QUICK), SMALL)
    return directory


def test_layout_is_opengvlabs(built):
    expected = EMBEDDINGS | {
        f"encoder.layers.{number}.{name}": shape
        for number in range(2)
        for name, shape in LAYER.items()
    }
    stored = load_file(built / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == expected
    config = json.loads((built / "config.json").read_text())
    assert config["architectures"] == ["InternVisionModel"]
    assert config["num_attention_heads"] == 3
    assert config["qk_normalization"] and not config["qkv_bias"]


def test_a_layer_written_out_computes_what_the_tower_computes():
    """One published layer by hand: QK norm over all heads, then three heads of attention."""
    torch.manual_seed(0)
    tower = build_tower(SMALL).eval()
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.3)
    state = published_tensors(tower.state_dict(), SMALL.layers)
    weights = {
        name.removeprefix("encoder.layers.1."): tensor
        for name, tensor in state.items()
        if name.startswith("encoder.layers.1.")
    }
    hidden = torch.randn(2, 65, 24)

    def norm(values, weight):
        return weight * values / (values.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    query, key, value = (
        norm(hidden, weights["norm1.weight"]) @ weights["attn.qkv.weight"].T
    ).chunk(3, dim=-1)
    query, key = (
        norm(query, weights["attn.q_norm.weight"]),
        norm(key, weights["attn.k_norm.weight"]),
    )
    heads = [tensor.view(2, 65, 3, 8).transpose(1, 2) for tensor in (query, key, value)]
    attended = (heads[0] @ heads[1].transpose(2, 3) / 8**0.5).softmax(-1) @ heads[2]
    attended = attended.transpose(1, 2).reshape(2, 65, 24)
    projected = attended @ weights["attn.proj.weight"].T + weights["attn.proj.bias"]
    middle = hidden + weights["ls1"] * projected
    inner = norm(middle, weights["norm2.weight"]) @ weights["mlp.fc1.weight"].T
    inner = nn.functional.gelu(inner + weights["mlp.fc1.bias"])
    outer = inner @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]
    expected = middle + weights["ls2"] * outer
    with torch.no_grad():
        torch.testing.assert_close(tower.encoder.layer[1](hidden), expected)


def test_two_builds_give_the_same_bytes(built, tmp_path):
    write_vision(tmp_path, train_vision(SMALL, QUICK), SMALL)
    for path in sorted(built.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_training_draws_from_training_splits_only(monkeypatch):
    def only_training(real):
        def guarded(split, *arguments):
            assert split == "train"
            return real(split, *arguments)

        return guarded

    for module, name in ((easy_vqa, "image"), (easy_vqa, "descriptions"), (digits, "scans")):
        monkeypatch.setattr(module, name, only_training(getattr(module, name)))
    train_vision(SMALL, QUICK)


def test_shapes_are_labelled_as_described():
    shapes = load_shapes("test", 12)
    described = list(easy_vqa.descriptions("test").values())
    assert shapes.tiles.shape == (len(described), 12, 12, 3)
    for position in (0, 17, len(described) - 1):
        assert easy_vqa.COLOURS[shapes.colours[position]] == described[position].colour
        assert easy_vqa.SHAPES[shapes.shapes[position]] == described[position].shape


def test_columns_name_the_digit_at_their_centre():
    scans = digits.scans("train")
    counts = np.array([1, 2, 3, 4])
    numbers = draw_numbers(np.random.default_rng(0), scans, counts, 48, columns=4)
    texts = [
        digits.strip(rng, scans, int(count)).text
        for rng in [np.random.default_rng(0)]
        for count in counts
    ]
    one, two, three, four = texts
    assert numbers.tiles.shape == (4, 48, 48, 3)
    assert ["".join(map(str, row)) for row in numbers.columns] == [
        one * 4,
        two[0] * 2 + two[1] * 2,
        three[0] + three[1] * 2 + three[2],
        four,
    ]


def test_filters_are_orthogonal_with_a_small_constant():
    filters = cosine_filters(6).flatten(1)
    gram = filters @ filters.T
    torch.testing.assert_close(
        gram - torch.diag(gram.diag()), torch.zeros(108, 108), atol=1e-5, rtol=0
    )
    norms = filters.norm(dim=1)
    constant = filters.view(108, 3, 36).std(dim=2).sum(dim=1) < 1e-6
    assert int(constant.sum()) == 3
    torch.testing.assert_close(norms[constant], torch.full((3,), 0.2))
    torch.testing.assert_close(norms[~constant], torch.ones(105))


def test_positions_differ_by_row_and_column():
    positions = sine_positions(4, 24)
    assert positions.shape == (16, 24)
    assert len(torch.unique(positions, dim=0)) == 16
    grid = positions.view(4, 4, 24)
    assert torch.equal(grid[:, 0, :12], grid[:, 3, :12])  # the row's half
    assert torch.equal(grid[0, :, 12:], grid[3, :, 12:])  # the column's half


def test_learning_rate_rises_stays_and_falls():
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.2) and factors[4:40] == [1.0] * 36
    assert factors[-1] == pytest.approx(1 / 60)
    assert factors[41:] == sorted(set(factors[41:]), reverse=True)


@pytest.mark.parametrize("script", ["standin_vision.py", "standin_language.py"])
def test_full_scale_builds_nothing(script, tmp_path):
    (tmp_path / "params.yaml").write_text("standin: {none: {build: false}}\n")
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, source / script, "--params", "standin.none", "--out", "made"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(source), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no stand-in" in done.stdout
    assert list((tmp_path / "made").iterdir()) == []
