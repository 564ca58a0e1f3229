"""The command: every verb from its words, and answers in a sentence."""

import subprocess
import sys

import pytest
import torch
from tests.checkpoint.build import build_combined

from nvlm.checkpoint.__main__ import build_parser, main
from nvlm.checkpoint.format.files import read_part, write_part
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.errors import UserError


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["nvlm.checkpoint", *words.split()])
        main()
        return capsys.readouterr().out

    return call


def test_from_hugging_face_and_round_all_formats(run, tmp_path):
    expected = build_combined(tmp_path)
    run("convert-vision hf_vision v --tensor 2")
    run("convert-language hf_language l --tensor 2 --vocab-multiple 8")
    run("combine l v c --init-std 0.02 --seed 3")
    assert read_manifest(tmp_path / "c") == expected
    run("reshard c split --pipeline 4")
    run("reshard split t1 --tensor 1 --layers-per-stage 3 1")
    run("reshard t1 t2 --tensor 2 --pipeline 1")
    run("export-megatron t2 mg")
    run("import-megatron mg from_mg")
    assert read_manifest(tmp_path / "from_mg") == expected
    run("export-hf from_mg hf --shard-size 64KiB")
    run("import-hf hf from_hf --tensor 2 --vocab-multiple 8")
    out = run("diff c from_mg")
    assert out.startswith("no difference in ")
    assert "all as written" in run("verify from_mg")
    text = run("inspect split")
    for line in ("grid            tensor 2 x pipeline 4", "stages          1 1 1 1 layers"):
        assert line in text
    assert "vocabulary      101 rows, 112 with padding" in text
    run("convert-vision hf_vision half --tensor 1 --dtype float16")
    assert read_manifest(tmp_path / "half").dtype == "float16"
    half = read_part(tmp_path / "half", 0, "vision_model.embedding")["class_token"]
    assert torch.equal(
        half, read_part(tmp_path / "v", 0, "vision_model.embedding")["class_token"].half()
    )


def test_diff_tells_the_first_difference_and_exits_with_1(run, tmp_path, capsys):
    build_combined(tmp_path)
    run("reshard combined other --tensor 1")
    assert "no difference" in run("diff combined other")
    tensors = read_part(tmp_path / "other", 0, "language_model.layer.002")
    tensors["mlp.linear_fc2.weight"][1, 2] = 7
    path = tmp_path / "other/tp00/language_model.layer.002.safetensors"
    path.unlink()
    write_part(tmp_path / "other", 0, "language_model.layer.002", tensors)
    with pytest.raises(SystemExit) as caught:
        run("diff combined other")
    assert caught.value.code == 1
    told = capsys.readouterr().out
    assert told.startswith(
        "language_model.model.layers.2.mlp.down_proj.weight: shape [32, 48]: 1 of"
    )
    assert "the first at [1, 2]" in told and told.endswith("and 7.0\n")
    with pytest.raises(UserError, match=r"layer\.002.* is altered"):
        run("verify other")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("reshard combined x", "reshard to what"),
        ("reshard combined x --layers-per-stage 2 1", "hold 3, and the decoder has 4"),
        ("combine language vision x --init-std 0", "--init-std: 0.0 should be more than 0"),
        ("diff combined nothing", "nothing is not a checkpoint"),
        ("diff combined vision", None),
    ],
)
def test_mistakes(run, tmp_path, words, complaint):
    build_combined(tmp_path)
    with pytest.raises((UserError, SystemExit), match=complaint):
        run(words)
    assert not (tmp_path / "x").exists()


def test_every_verb_has_help():
    subparsers = build_parser()._subparsers
    assert subparsers is not None
    verbs = subparsers._group_actions[0].choices
    assert isinstance(verbs, dict) and len(verbs) == 12
    for parser in verbs.values():
        assert parser.description
        assert all(action.help for action in parser._actions)


def test_shell_gets_one_line_and_a_status(tmp_path):
    command = [sys.executable, "-m", "nvlm.checkpoint", "inspect", str(tmp_path / "nothing")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
