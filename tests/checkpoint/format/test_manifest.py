"""A damaged checkpoint is told by the file that is wrong."""

import json
import re

import pytest
import torch
from tests.checkpoint.models import save_language, save_vision

from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.layout import Grid
from nvlm.checkpoint.format.manifest import check_digests, read_manifest, write_manifest
from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.errors import UserError

LAYER = "tp01/language_model.layer.002.safetensors"


@pytest.fixture
def checkpoint(tmp_path):
    save_language(tmp_path / "hf", "qwen2", dtype=torch.bfloat16)
    convert_language(tmp_path / "hf", tmp_path / "core", tensor=2, vocabulary_multiple=8)
    return tmp_path / "core"


def edit(checkpoint, change):
    path = checkpoint / "checkpoint.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_manifest_says_what_the_checkpoint_is(checkpoint):
    manifest = read_manifest(checkpoint)
    assert manifest.grid == Grid(tensor=2, pipeline=1, layers_per_stage=(4,))
    assert manifest.vocabulary is not None
    assert (manifest.vocabulary.true, manifest.vocabulary.padded) == (101, 112)
    assert manifest.dtype == "bfloat16"
    assert manifest.architecture.vision is None
    assert {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*.*")} == {
        *manifest.files,
        "checkpoint.json",
    }
    check_digests(checkpoint, manifest)


def test_manifest_is_written_as_it_was_read(checkpoint, tmp_path):
    write_manifest(tmp_path, read_manifest(checkpoint))
    assert (tmp_path / "checkpoint.json").read_bytes() == (
        checkpoint / "checkpoint.json"
    ).read_bytes()
    assert str(tmp_path) not in (tmp_path / "checkpoint.json").read_text()


def test_a_trait_with_its_default_is_left_out(tmp_path):
    """The bytes of a checkpoint that lacks a trait don't change when the trait is introduced."""
    traits = {"6B": [], "300M": ["norm_type", "qk_norm", "qkv_bias"]}
    for like, names in traits.items():
        save_vision(tmp_path / like, like=like)
        convert_vision(tmp_path / like, tmp_path / f"{like}_core", tensor=2)
        tower = json.loads((tmp_path / f"{like}_core/checkpoint.json").read_text())
        known = set(tower["architecture"]["vision"])
        assert sorted(known & {"norm_type", "qk_norm", "qkv_bias"}) == names
        found = read_manifest(tmp_path / f"{like}_core").architecture.vision
        assert found is not None and found.qkv_bias == (like == "300M")
    edit(tmp_path / "300M_core", lambda m: m["architecture"]["vision"].update(norm_type="odd"))
    with pytest.raises(UserError, match="norm_type 'odd' is none of rms_norm, layer_norm"):
        read_manifest(tmp_path / "300M_core")
    edit(tmp_path / "6B_core", lambda m: m["architecture"]["vision"].update(qk_norm="yes"))
    with pytest.raises(UserError, match=r"vision\.qk_norm can't be 'yes'"):
        read_manifest(tmp_path / "6B_core")


def test_missing_file_is_named(checkpoint):
    (checkpoint / LAYER).unlink()
    with pytest.raises(UserError, match=f"{LAYER} is missing"):
        read_manifest(checkpoint)
    with pytest.raises(UserError, match=f"{LAYER} is missing"):
        read_part(checkpoint, 1, "language_model.layer.002")


def test_short_file_is_named(checkpoint):
    data = (checkpoint / LAYER).read_bytes()
    (checkpoint / LAYER).write_bytes(data[:-2])
    with pytest.raises(UserError, match=f"{LAYER} has {len(data) - 2} bytes, not .* {len(data)}"):
        read_manifest(checkpoint)
    with pytest.raises(UserError, match=f"{LAYER} is not whole"):
        read_part(checkpoint, 1, "language_model.layer.002")


@pytest.mark.parametrize("position", [3, -1])
def test_altered_file_is_named(checkpoint, position):
    data = bytearray((checkpoint / LAYER).read_bytes())
    data[position] ^= 1
    (checkpoint / LAYER).write_bytes(data)
    manifest = read_manifest(checkpoint)
    with pytest.raises(UserError, match=f"{LAYER} is altered"):
        check_digests(checkpoint, manifest)
    with pytest.raises(UserError, match=f"{LAYER} is altered"):
        check_digests(checkpoint, manifest, [LAYER])
    check_digests(checkpoint, manifest, ["tp00/language_model.head.safetensors"])


def test_directory_without_manifest_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not a checkpoint"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="not a checkpoint"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m.update(format=2), "format 2 is not 1"),
        (lambda m: m.pop("grid"), "manifest lacks or does not know grid"),
        (lambda m: m.update(colour="red"), "manifest lacks or does not know colour"),
        (lambda m: m["grid"].update(tensor="2"), "manifest.grid.tensor can't be '2'"),
        (lambda m: m["grid"].update(tensor=True), "manifest.grid.tensor can't be True"),
        (lambda m: m["grid"].update(layers_per_stage=[3]), "not the decoder's 4"),
        (lambda m: m["grid"].update(layers_per_stage=[2, 2]), "pipeline 1 has 2 layer counts"),
        (lambda m: m["grid"].update(tensor=3), "tensor parallel 3 does not divide the 2 query"),
        (lambda m: m["vocabulary"].update(padded=100), "not of the decoder's 101 rows"),
        (lambda m: m["vocabulary"].update(padded=113), "113 rows do not divide"),
        (lambda m: m["architecture"]["language"].update(family="gpt"), "'gpt' is none of llama"),
        (lambda m: m.update(dtype="int8"), "'int8' is none of float32"),
        (lambda m: m["files"].pop(LAYER), f"does not list {LAYER}"),
        (lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "'../x', which is out"),
        (lambda m: m["files"].update({"/x": {"bytes": 1, "sha256": ""}}), "'/x', which is outside"),
        (lambda m: m.update(files=[]), "manifest.files can't be"),
    ],
)
def test_altered_manifest_is_refused(checkpoint, change, complaint):
    edit(checkpoint, change)
    with pytest.raises(UserError, match=re.escape(complaint)):
        read_manifest(checkpoint)


def test_manifest_that_is_no_json_is_refused(checkpoint):
    (checkpoint / "checkpoint.json").write_text("{")
    with pytest.raises(UserError, match=r"checkpoint\.json is altered"):
        read_manifest(checkpoint)
