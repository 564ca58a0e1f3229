"""Stand-ins: the published layouts, the same bytes twice, nothing from a test split."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.data.packaged import digits, easy_vqa
from nvlm.params import load_params
from nvlm.standin.language import LanguageStandin, learn_tokenizer, train_language, write_language
from nvlm.standin.vision import VisionStandin, train_vision
from nvlm.standin.vision_layout import write_vision


@pytest.fixture(autouse=True)
def no_test_split(monkeypatch):
    """Asking for anything but the training split is an error."""
    for module, name in ((easy_vqa, "questions"), (easy_vqa, "image"), (digits, "scans")):
        original = getattr(module, name)

        def guarded(split, *arguments, original=original):
            assert split == "train"
            return original(split, *arguments)

        monkeypatch.setattr(module, name, guarded)


def build_vision(directory: Path) -> None:
    params = load_params("standin.vision", VisionStandin)
    assert params.architecture and params.training
    directory.mkdir()
    tower = train_vision(params.architecture, replace(params.training, steps=1))
    write_vision(directory, tower, params.architecture)


def build_language(directory: Path, name: str) -> None:
    params = load_params(f"standin.{name}", LanguageStandin)
    assert params.architecture and params.training
    directory.mkdir()
    tokenizer = learn_tokenizer(params.architecture, params.tokenizer_size)
    decoder = train_language(params.architecture, tokenizer, replace(params.training, steps=1))
    write_language(directory, decoder, tokenizer, params.shard_size)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_the_tower_is_one_that_the_converter_takes_and_tp_2_does_not_divide(tmp_path):
    build_vision(tmp_path / "a")
    build_vision(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    manifest = convert_vision(tmp_path / "a", tmp_path / "core", tensor=2)
    assert manifest.architecture.vision is not None
    assert manifest.architecture.vision.heads % 2 == 1


@pytest.mark.parametrize(("name", "family"), [("lm_34b", "llama"), ("lm_72b", "qwen2")])
def test_the_decoders_have_their_families_traits(name, family, tmp_path):
    build_language(tmp_path / "a", name)
    build_language(tmp_path / "b", name)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    manifest = convert_language(
        tmp_path / "a", tmp_path / "core", tensor=2, vocabulary_multiple=128
    )
    language = manifest.architecture.language
    assert language is not None and language.family == family
    assert language.query_groups < language.heads
    assert manifest.vocabulary is not None
    assert manifest.vocabulary.padded > manifest.vocabulary.true
    shutil.rmtree(tmp_path / "core")
