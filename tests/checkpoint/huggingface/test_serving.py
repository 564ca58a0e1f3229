"""What a server makes of an export: the prompts of training, and no sampling of its own.

The prompt is built as vLLM 0.32 does (``processors/nvlm_d.py``, ``models/nvlm_d.py``), with the
tokenizer that AutoTokenizer gives, and compared with what training encodes.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tests.checkpoint.models import save_language, save_vision
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.huggingface.exporting import export_hf
from nvlm.checkpoint.huggingface.importing import import_hf
from nvlm.checkpoint.huggingface.nvlm_d import exported_rows
from nvlm.checkpoint.parts.projector import ProjectorParams
from nvlm.checkpoint.relayout.combine import combine
from nvlm.checkpoint.verify.compare import compare_with_source
from nvlm.errors import UserError
from nvlm.model.prompts import SYSTEM, Turn
from nvlm.model.tokens import TEXT, encode_conversation, load_tokenizer
from nvlm.standin.tokenizer import train_tokenizer

QUESTION = "What is written?\nAnswer the question using a single word, phrase, or number."
TOKENS_PER_TILE = 4
SUGGESTED = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Merges where a server could go wrong: `><`, `>` and line break, words of the tags."""
    tags = "<Image><tile_1></Image>\n<Image><tile_global_thumbnail></Image>\n<tile_global>"
    texts = [tags] * 50 + [f"system\n{SYSTEM}", f"user\n{QUESTION}", "assistant\n"] * 20
    return train_tokenizer(family, texts, 420)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def exported(request, tmp_path_factory) -> tuple[str, Path]:
    """The family, and a directory with ``combined`` and its export ``out``."""
    directory, family = tmp_path_factory.mktemp(request.param), request.param
    tokenizer = tokenizer_of(family)
    save_vision(directory / "hf_vision")
    save_language(directory / "hf_language", family, vocabulary=len(tokenizer))
    tokenizer.save_pretrained(directory / "hf_language")
    generation = {"eos_token_id": [1, 2], **SUGGESTED}
    (directory / "hf_language/generation_config.json").write_text(json.dumps(generation))
    convert_vision(directory / "hf_vision", directory / "vision", tensor=2)
    convert_language(
        directory / "hf_language", directory / "language", tensor=2, vocabulary_multiple=8
    )
    params = ProjectorParams(init_std=0.02, seed=1)
    combine(directory / "vision", directory / "language", directory / "combined", params)
    export_hf(directory / "combined", directory / "out", shard_bytes=1 << 30)
    return family, directory


def config(directory: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((directory / "out" / name).read_text())


def conversation(system: str = SYSTEM) -> list[Turn]:
    user = Turn(role="user", text=f"<image>\n{QUESTION}")
    return [Turn(role="system", text=system), user] if system else [user]


def trained_ids(directory: Path, family: str, tiles: int, system: str = SYSTEM) -> list[int]:
    """What training encodes, with the image token in the places of an image."""
    encoded = encode_conversation(
        conversation(system),
        load_tokenizer(directory / "combined/tokenizer"),
        template="chatml",
        family=family,
        tiles_per_image=[tiles],
        tokens_per_tile=TOKENS_PER_TILE,
        tile_tags=True,
        generation=True,
    )
    image = config(directory)["image_token_id"]
    pairs = zip(encoded.input_ids.tolist(), encoded.visual_index.tolist(), strict=True)
    return [token if place == TEXT else image for token, place in pairs]


def vllm_ids(
    directory: Path, tiles: int, messages: list[dict[str, str]], *, joined: bool
) -> list[int]:
    """A prompt as vLLM builds it: the template, then ids, then those of an image in their place.

    ``joined``: whether `</Image>` and the line break are encoded together, as in vLLM 0.26.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory / "out")

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tags = [f"<tile_{tile}>" for tile in range(1, tiles)] + ["<tile_global_thumbnail>"]
    context = "<|vision_pad|>" * TOKENS_PER_TILE
    image = "<Image>" + "".join(tag + context for tag in tags) + "</Image>"
    replacement = ids(f"{image}\n") if joined else ids(image) + ids("\n")
    prompt, target = ids(text), ids("<image>\n")
    starts = range(len(prompt) - len(target) + 1)
    (start,) = (place for place in starts if prompt[place : place + len(target)] == target)
    return prompt[:start] + replacement + prompt[start + len(target) :]


def messages(system: str | None = SYSTEM) -> list[dict[str, str]]:
    user = {"role": "user", "content": f"<image>\n{QUESTION}"}
    return [user] if system is None else [{"role": "system", "content": system}, user]


@pytest.mark.parametrize("tiles", [1, 3, 7])
def test_a_server_reads_the_prompt_of_training(exported, tiles):
    family, directory = exported
    expected = trained_ids(directory, family, tiles)
    assert vllm_ids(directory, tiles, messages(), joined=True) == expected
    apart = vllm_ids(directory, tiles, messages(), joined=False)
    # vLLM 0.30 to 0.33 without the plugin: the line break after the image alone.
    assert len(apart) == len(expected) + 1
    start = next(n for n, pair in enumerate(zip(apart, expected, strict=False)) if len({*pair}) > 1)
    assert apart[start + 2 :] == expected[start + 1 :]


def test_the_mended_tokenizer_is_what_makes_it_so(exported, tmp_path):
    """Without the mends the ids differ: the test above could fail."""
    family, directory = exported
    expected = trained_ids(directory, family, 3)
    (tmp_path / "out").mkdir()
    for path in (directory / "out").glob("*token*.json"):
        (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    template = (directory / "out/chat_template.jinja").read_bytes()
    (tmp_path / "out/chat_template.jinja").write_bytes(template)
    assert vllm_ids(tmp_path, 3, messages(), joined=True) == expected
    tokenizer = config(tmp_path, "tokenizer.json")
    trained = json.loads((directory / "combined/tokenizer/tokenizer.json").read_text())
    for key in ("normalizer", "pre_tokenizer"):
        plain = {**tokenizer, key: trained[key]}
        (tmp_path / "out/tokenizer.json").write_text(json.dumps(plain))
        same = vllm_ids(tmp_path, 3, messages(), joined=True) == expected
        assert same == (family == "qwen2" and key == "normalizer")


def test_a_conversation_without_a_system_turn_gets_the_trained_one(exported):
    family, directory = exported
    without = vllm_ids(directory, 3, messages(None), joined=True)
    assert without == vllm_ids(directory, 3, messages(), joined=True)
    empty = vllm_ids(directory, 3, messages(""), joined=True)
    assert empty == trained_ids(directory, family, 3, system="")


def test_the_template_renders_whole_conversations(exported):
    family, directory = exported
    tokenizer = AutoTokenizer.from_pretrained(directory / "out")
    turns = [*messages("Be brief."), {"role": "assistant", "content": "{{ 'no' }}"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    begin = "<|startoftext|>" if family == "llama" else ""
    assert text == (
        f"{begin}<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n<image>\n{QUESTION}<|im_end|>\n"
        "<|im_start|>assistant\n{{ 'no' }}<|im_end|>\n"
    )


def test_the_image_token_lies_inside_of_the_vocabulary(exported):
    family, directory = exported
    told = config(directory)
    rows, trained = told["llm_config"]["vocab_size"], told["trained_vocab_size"]
    assert told["image_token_id"] < rows
    tokenizer = AutoTokenizer.from_pretrained(directory / "out")
    assert tokenizer.convert_tokens_to_ids("<|vision_pad|>") == told["image_token_id"]
    if family == "qwen2":  # has the token
        assert rows == trained
        return
    assert (told["image_token_id"], rows % 64) == (trained, 0)
    with safe_open(directory / "out/model-00001-of-00001.safetensors", framework="pt") as file:
        for name in ("model.embed_tokens", "lm_head"):
            table = file.get_tensor(f"language_model.{name}.weight")
            assert table.shape[0] == rows
            assert table[:trained].abs().sum(-1).all() and not table[trained:].any()


@pytest.mark.parametrize(
    ("vocabulary", "image", "rows"),
    [(64_000, 64_000, 64_064), (152_064, 151_646, 152_064), (480, 480, 512), (63, 63, 64)],
)
def test_rows_of_an_export(vocabulary, image, rows):
    assert exported_rows(vocabulary, image) == rows


def test_no_sampling_is_suggested(exported):
    family, directory = exported
    suggested = json.loads((directory / "combined/tokenizer/generation_config.json").read_text())
    assert suggested["temperature"] == 0.7
    tokenizer = load_tokenizer(directory / "combined/tokenizer")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = {"eos_token_id": [end], "pad_token_id": 0}
    assert config(directory, "generation_config.json") == (
        {"bos_token_id": 1, **expected} if family == "llama" else expected
    )


@pytest.mark.parametrize("tensor", [1, 2])
def test_what_served_comes_back(exported, tmp_path, tensor):
    """Rows of zeros, tokens and files that the export adds are left out again."""
    _, directory = exported
    manifest = import_hf(directory / "out", tmp_path / "back", tensor=tensor, vocabulary_multiple=8)
    expected = read_manifest(directory / "combined")
    assert manifest.architecture == expected.architecture
    assert manifest.vocabulary is not None and expected.vocabulary is not None
    assert manifest.vocabulary.true == expected.vocabulary.true
    names = expected.files if tensor == 2 else expected.other_files
    assert {name: manifest.files.get(name) for name in names} == {
        name: expected.files[name] for name in names
    }
    compared = compare_with_source(
        directory / "out", directory / "hf_language", "language_model", manifest.architecture
    )
    assert not [comparison for comparison in compared if comparison.difference]


@pytest.mark.parametrize("trained", [0, 10**6, "101", True])
def test_rows_that_cannot_be(exported, tmp_path, trained):
    _, directory = exported
    (tmp_path / "out").mkdir()
    changed = config(directory) | {"trained_vocab_size": trained}
    (tmp_path / "out/config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"trained_vocab_size .* should be of the"):
        import_hf(tmp_path / "out", tmp_path / "no", tensor=1, vocabulary_multiple=8)
