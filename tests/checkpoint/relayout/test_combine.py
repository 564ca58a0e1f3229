"""Combined and repartitioned checkpoints: every tensor, by links, projector aside."""

import pytest
import torch
from tests.checkpoint.models import save_language, save_vision

from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.layout import Grid
from nvlm.checkpoint.format.manifest import Manifest, check_digests, read_manifest
from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.parts.projector import SPLIT, ProjectorParams
from nvlm.checkpoint.relayout.combine import combine
from nvlm.checkpoint.relayout.repartition import repartition
from nvlm.errors import UserError

PROJECTOR = ProjectorParams(init_std=0.02, seed=3)


def build(directory, tensor: int, *, dtype: torch.dtype = torch.float32) -> Manifest:
    """A combined checkpoint in ``directory/combined`` out of its two halves."""
    save_vision(directory / "hf_vision")
    save_language(directory / "hf_language", "llama", dtype=dtype)
    convert_vision(directory / "hf_vision", directory / "vision", tensor=tensor)
    convert_language(
        directory / "hf_language", directory / "language", tensor=tensor, vocabulary_multiple=1
    )
    return combine(directory / "vision", directory / "language", directory / "combined", PROJECTOR)


def test_halves_are_linked_and_only_the_projector_is_new(tmp_path):
    build(tmp_path, 2)
    manifest = read_manifest(tmp_path / "combined")
    check_digests(tmp_path / "combined", manifest)
    assert [source.part for source in manifest.sources] == ["vision_model", "language_model"]
    fresh = set(manifest.files)
    for half in ("vision", "language"):
        for name in read_manifest(tmp_path / half).files:
            assert (tmp_path / "combined" / name).samefile(tmp_path / half / name)
            fresh.remove(name)
    assert fresh == {f"tp{rank:02d}/vision_projection.safetensors" for rank in (0, 1)}
    assert "tokenizer/tokenizer.json" in manifest.files


def test_projector_does_not_depend_on_the_grid(tmp_path):
    for size in (1, 2):
        (tmp_path / str(size)).mkdir()
        build(tmp_path / str(size), size)
    whole = read_part(tmp_path / "1" / "combined", 0, "vision_projection")
    shards = [read_part(tmp_path / "2" / "combined", r, "vision_projection") for r in (0, 1)]
    for name, tensor in whole.items():
        parts = [shard[name] for shard in shards]
        found = torch.cat(parts, dim=SPLIT[name]) if name in SPLIT else parts[1]
        assert torch.equal(found, tensor), name
    # Features: 4 x 24 channels of the tower; width: the decoder's FFN; paper section 4.1.
    assert whole["encoder.linear_fc1.weight"].shape == (48, 96)
    assert whole["encoder.linear_fc2.weight"].shape == (32, 48)
    assert whole["encoder.linear_fc1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(whole["encoder.linear_fc1.layer_norm_weight"], torch.ones(96))
    assert torch.equal(whole["encoder.linear_fc1.layer_norm_bias"], torch.zeros(96))


def test_same_halves_give_the_same_bytes(tmp_path):
    first = build(tmp_path, 2)
    again = combine(tmp_path / "vision", tmp_path / "language", tmp_path / "again", PROJECTOR)
    assert first == again
    other = ProjectorParams(init_std=0.02, seed=4)
    changed = combine(tmp_path / "vision", tmp_path / "language", tmp_path / "changed", other)
    assert {name for name in first.files if first.files[name] != changed.files[name]} == {
        f"tp{rank:02d}/vision_projection.safetensors" for rank in (0, 1)
    }


def test_halves_that_do_not_fit_are_refused(tmp_path):
    build(tmp_path, 2)
    convert_vision(tmp_path / "hf_vision", tmp_path / "vision_1", tensor=1)
    save_vision(tmp_path / "hf_half", dtype=torch.float16)
    convert_vision(tmp_path / "hf_half", tmp_path / "vision_half", tensor=2)
    for vision, language, complaint in (
        ("vision_1", "language", "tensor parallel 1 and .* for 2"),
        ("vision_half", "language", "float16 and .* float32"),
        ("language", "vision", "language holds language: give a checkpoint of vision alone"),
        ("vision", "combined", "combined holds vision and language"),
        ("vision", "nothing", "nothing is not a checkpoint"),
    ):
        with pytest.raises(UserError, match=complaint):
            combine(tmp_path / vision, tmp_path / language, tmp_path / "out", PROJECTOR)
        assert not (tmp_path / "out").exists()


def test_pipeline_there_and_back_keeps_every_tensor(tmp_path):
    build(tmp_path, 2)
    source = read_manifest(tmp_path / "combined")
    repartition(tmp_path / "combined", tmp_path / "split", pipeline=2)
    split = read_manifest(tmp_path / "split")
    assert split.grid == Grid(tensor=2, pipeline=2, layers_per_stage=(2, 2))
    repartition(tmp_path / "split", tmp_path / "merged", pipeline=1)
    merged = read_manifest(tmp_path / "merged")
    assert merged == source
    for name in source.files:
        assert (tmp_path / "merged" / name).samefile(tmp_path / "combined" / name)
    head = read_part(tmp_path / "merged", 0, "language_model.head")
    assert head.keys() == {"final_layernorm.weight", "output_layer.weight"}


@pytest.mark.parametrize("pipeline", [3, 8, 0, -1])
def test_layers_that_do_not_divide_are_refused(tmp_path, pipeline):
    build(tmp_path, 1)
    with pytest.raises(UserError, match=f"4 decoder layers do not divide into {pipeline}"):
        repartition(tmp_path / "combined", tmp_path / "out", pipeline=pipeline)
    assert not (tmp_path / "out").exists()


def test_tower_alone_has_no_pipeline(tmp_path):
    save_vision(tmp_path / "hf")
    convert_vision(tmp_path / "hf", tmp_path / "vision", tensor=2)
    with pytest.raises(UserError, match="no decoder"):
        repartition(tmp_path / "vision", tmp_path / "out", pipeline=2)
