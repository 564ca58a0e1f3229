"""Layout changes: against a conversion made for the layout, never against our own inverse alone."""

import pytest
from tests.checkpoint.build import build_combined

from nvlm.checkpoint.format.files import read_part, write_part
from nvlm.checkpoint.format.layout import Grid
from nvlm.checkpoint.format.manifest import check_digests, read_manifest
from nvlm.checkpoint.relayout.reshard import reshard
from nvlm.checkpoint.verify.compare import compare
from nvlm.errors import UserError


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_same_bytes_as_converting_for_that_layout(tmp_path, family, before, after):
    # 112 rows on one rank and on two: the same padding.
    rows = {before: 16 // before, after: 16 // after}
    for size in (before, after):
        (tmp_path / str(size)).mkdir()
        traits = {"tied": True, "tower": "300M"} if family == "qwen2" else {}
        build_combined(
            tmp_path / str(size), family=family, tensor=size, multiple=rows[size], **traits
        )
    reshard(tmp_path / str(before) / "combined", tmp_path / "out", tensor=after)
    found = read_manifest(tmp_path / "out")
    assert found == read_manifest(tmp_path / str(after) / "combined")
    check_digests(tmp_path / "out", found)


def test_vocabulary_that_does_not_divide_gets_more_padding(tmp_path):
    manifest = build_combined(tmp_path, tensor=1, multiple=1)
    assert manifest.vocabulary is not None and manifest.vocabulary.padded == 101
    changed = reshard(tmp_path / "combined", tmp_path / "out", tensor=2)
    assert changed.vocabulary is not None and changed.vocabulary.padded == 102
    (tmp_path / "two").mkdir()
    expected = build_combined(tmp_path / "two", tensor=2, multiple=1)
    assert changed.files == expected.files


def test_uneven_stages_move_no_byte(tmp_path):
    build_combined(tmp_path)
    reshard(tmp_path / "combined", tmp_path / "out", layers_per_stage=[1, 2, 1])
    manifest = read_manifest(tmp_path / "out")
    assert manifest.grid == Grid(tensor=2, pipeline=3, layers_per_stage=(1, 2, 1))
    for name in manifest.files:
        assert (tmp_path / "out" / name).samefile(tmp_path / "combined" / name)


def test_both_at_once_and_the_pipeline_is_kept(tmp_path):
    build_combined(tmp_path)
    reshard(tmp_path / "combined", tmp_path / "a", tensor=1, layers_per_stage=[3, 1])
    assert read_manifest(tmp_path / "a").grid.layers_per_stage == (3, 1)
    reshard(tmp_path / "a", tmp_path / "b", tensor=2)
    manifest = read_manifest(tmp_path / "b")
    assert manifest.grid == Grid(tensor=2, pipeline=2, layers_per_stage=(3, 1))
    assert manifest.files == read_manifest(tmp_path / "combined").files


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"layers_per_stage": [1, 2]}, r"hold 3, and the decoder has 4"),
        ({"layers_per_stage": [4, 1]}, r"hold 5, and the decoder has 4"),
        ({"layers_per_stage": [4, 0]}, "each stage needs one"),
        ({"layers_per_stage": [2, 2], "pipeline": 3}, "pipeline 3 has 2 layer counts"),
        ({"pipeline": 3}, "do not divide into 3"),
        ({"tensor": 4}, "does not divide the 2 query groups"),
        ({"tensor": 0}, "should be 1 or more"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(tmp_path, change, complaint):
    build_combined(tmp_path)
    with pytest.raises(UserError, match=complaint):
        reshard(tmp_path / "combined", tmp_path / "out", **change)
    assert not list(tmp_path.glob("*out*"))


def test_a_nan_is_the_same_on_every_rank(tmp_path):
    """A model that training has spoilt is still converted, bit by bit."""
    build_combined(tmp_path)
    part = "language_model.layer.001"
    for rank in (0, 1):
        tensors = {
            name: t.clone() for name, t in read_part(tmp_path / "language", rank, part).items()
        }
        for name in ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc2.weight"):
            tensors[name].view(-1)[0] = float("nan")
        (tmp_path / "language" / f"tp{rank:02d}" / f"{part}.safetensors").unlink()
        write_part(tmp_path / "language", rank, part, tensors)
    reshard(tmp_path / "language", tmp_path / "one", tensor=1)
    reshard(tmp_path / "one", tmp_path / "back", tensor=2)
    assert not any(c.difference for c in compare(tmp_path / "language", tmp_path / "back"))
