"""The stages' scripts: parameters in, checkpoint out, errors in a sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.checkpoint.models import save_language, save_vision

from nvlm.checkpoint.format.manifest import read_manifest

ROOT = Path(__file__).parents[2]
PARAMS = """
model:
  tensor_parallel: 2
  projector: {init_std: 2e-02, seed: 1}
  lm: {make_vocabulary_divisible_by: 64}
  odd: {make_vocabulary_divisible_by: 0}
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
