"""The stages' scripts: parameters in, checkpoint out, errors in a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.checkpoint.build import build_combined
from tests.checkpoint.models import save_language, save_vision

from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.relayout.repartition import repartition
from nvlm.checkpoint.verify.compare import compare

ROOT = Path(__file__).parents[2]
PARAMS = """
model:
  tensor_parallel: 2
  projector: {init_std: 2e-02, seed: 1}
  lm: {make_vocabulary_divisible_by: 64}
  odd: {make_vocabulary_divisible_by: 0}
"""
RELEASED = """
model:
  tensor_parallel: 2
  lm: {make_vocabulary_divisible_by: 8}
  released:
    source: {format: FORMAT, repo: owner/nvlm, revision: abc, directory: exported, requires: x}
    importing: {requires: x, tokenizer: null, vocabulary: null, rope_theta: null}
"""


def run(directory, script, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "src" / script), *arguments],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_from_hugging_face_to_a_split_checkpoint(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    save_vision(tmp_path / "hf/vision")
    save_language(tmp_path / "hf/lm", "qwen2")
    for script, *arguments in (
        ("convert_vision.py", "--source", "hf/vision", "--out", "core/vision"),
        ("convert_language.py", "--params", "model.lm", "--source", "hf/lm", "--out", "core/lm"),
        ("combine.py", "--vision", "core/vision", "--language", "core/lm", "--out", "combined"),
        ("repartition.py", "--source", "combined", "--pipeline-parallel", "2", "--out", "split"),
    ):
        result = run(tmp_path, script, *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), script
    manifest = read_manifest(tmp_path / "split")
    assert (manifest.grid.tensor, manifest.grid.layers_per_stage) == (2, (2, 2))
    assert manifest.vocabulary is not None
    assert manifest.vocabulary.padded == 128
    assert [source.repo for source in manifest.sources] == ["vision", "lm"]


@pytest.mark.parametrize("file_format", ["huggingface", "megatron"])
def test_what_is_exported_downloaded_and_imported_has_every_weight(tmp_path, file_format):
    """In the grid that generation wants: a Megatron file of two stages comes in as one."""
    (tmp_path / "params.yaml").write_text(RELEASED.replace("FORMAT", file_format))
    build_combined(tmp_path)
    export, laid_out = "export_hf.py", "combined"
    if file_format == "megatron":
        export, laid_out = "export_megatron.py", "split"
        repartition(tmp_path / "combined", tmp_path / "split", pipeline=2)
    importing = ("--params", "model.released", "--language", "model.lm")
    for script, *arguments in (
        (export, "--checkpoint", laid_out, "--out", "exported"),
        ("download.py", "--params", "model.released.source", "--out", "downloaded"),
        ("import_released.py", *importing, "--source", "downloaded", "--out", "back"),
    ):
        result = run(tmp_path, script, *arguments)
        assert result.returncode == 0, result.stderr
    assert read_manifest(tmp_path / "back").grid == read_manifest(tmp_path / "combined").grid
    pairs = compare(tmp_path / "combined", tmp_path / "back")
    different = [each.name for each in pairs if each.difference]
    # The export for servers writes the tokenizer's files anew.
    kept = [name for name in different if not name.startswith("tokenizer/")]
    assert (kept if file_format == "huggingface" else different) == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("section", "source", "complaint"),
    [
        ("model.lm", "nowhere", "error: nowhere/config.json is missing: download the model again"),
        ("model.lmm", "hf", "error: params.yaml has no value 'model.lmm.make_vocabulary"),
        ("model.odd", "hf", "error: model.odd.make_vocabulary_divisible_by: 0 should be 1 or more"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, section, source, complaint):
    (tmp_path / "params.yaml").write_text(PARAMS)
    result = run(
        tmp_path, "convert_language.py", "--params", section, "--source", source, "--out", "out"
    )
    assert result.returncode == 2
    assert result.stderr.startswith(complaint)
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
