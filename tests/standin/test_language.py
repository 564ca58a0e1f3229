"""The language stand-ins: what they are taught, their tokenizers, and that builds repeat."""

import json
import re

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from nvlm.checkpoint.format.architecture import LanguageArchitecture
from nvlm.data.packaged import digits, easy_vqa
from nvlm.errors import UserError
from nvlm.model.prompts import LETTERS, READ_ANSWER, SHORT_ANSWER, tile_tags
from nvlm.model.tokens import IGNORED, load_tokenizer
from nvlm.params import parse_params
from nvlm.standin.dialogs import BLANK, DialogWriter
from nvlm.standin.language import (
    Batches,
    LanguageStandin,
    learn_tokenizer,
    train_language,
    write_language,
)
from nvlm.standin.training import Training

QUICK = Training(steps=3, batch=4, matrix_lr=0.02, lr=2e-3, seed=5)


def small(family: str) -> LanguageArchitecture:
    return LanguageArchitecture(
        family=family,
        hidden_size=32,
        layers=2,
        heads=4,
        query_groups=2,
        ffn_hidden_size=48,
        norm_epsilon=1e-5,
        rope_theta=1e6,
        vocabulary=499,
        max_positions=512,
    )


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family):
    return learn_tokenizer(small(family), 470)


@pytest.fixture(scope="module")
def built(family, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp(family)
    decoder = train_language(small(family), tokenizer, QUICK)
    write_language(directory, decoder, tokenizer, "50KB")
    return directory


def dialogs(count=600):
    writer = DialogWriter(seed=7)
    return [writer.draw() for _ in range(count)]


def pairs(dialog):
    """(what the user said, what the assistant answered) of each exchange."""
    said = [turn for turn in dialog.conversation if turn.role != "system"]
    return [(user.text, answer.text) for user, answer in zip(said[::2], said[1::2], strict=True)]


def shown(dialog):
    return {word.strip() for tile in dialog.tiles for word in tile} - {BLANK}


def test_every_question_about_a_shape_was_asked_in_training():
    published = {(asked.question, asked.answer) for asked in easy_vqa.questions("train")}
    asked = [
        (text.removeprefix("<image>\n").removesuffix(SHORT_ANSWER), answer)
        for dialog in dialogs()
        for text, answer in pairs(dialog)
        if text.endswith(SHORT_ANSWER)
    ]
    assert len(asked) > 100
    assert set(asked) <= published


def test_the_right_letter_is_that_of_what_the_picture_shows():
    checked = 0
    for dialog in dialogs():
        for text, answer in pairs(dialog):
            options = dict(re.findall(r"^([A-D])\. (\w+)$", text, re.MULTILINE))
            if options and dialog.tiles:
                assert options[answer] in shown(dialog)
                right = [letter for letter, option in options.items() if option in shown(dialog)]
                assert right == [answer]
                checked += 1
    assert checked > 200


def test_a_number_is_what_its_tiles_show():
    numbers = 0
    for dialog in dialogs():
        (text, answer), *others = pairs(dialog)
        if text.endswith(READ_ANSWER):
            *tiles, _ = dialog.tiles
            assert not others
            assert "".join("".join(set(tile) - {BLANK}) for tile in tiles) == answer
            numbers += 1
    assert numbers > 30


def test_the_letter_cannot_be_guessed():
    letters = [
        answer
        for dialog in dialogs()
        for text, answer in pairs(dialog)
        if "D. " in text and answer in LETTERS
    ]
    assert set(letters) == set("ABCD")
    assert max(letters.count(letter) for letter in "ABCD") / len(letters) < 0.4


def test_no_dialog_needs_the_test_split(monkeypatch):
    def only_training(real):
        def guarded(split, *arguments):
            assert split == "train"
            return real(split, *arguments)

        return guarded

    for module, name in ((easy_vqa, "questions"), (easy_vqa, "descriptions"), (digits, "scans")):
        monkeypatch.setattr(module, name, only_training(getattr(module, name)))
    dialogs(20)


def test_tokenizer_carries_chatml_and_any_text(family, tokenizer):
    for token in ("<|im_start|>", "<|im_end|>"):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1
    for text in (*tile_tags(family, 7), "<Image>", "Grüße, 你好 🙂\n\tcafé 1,234"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode("4711", add_special_tokens=False)) == 4
    assert (tokenizer.bos_token is not None) == (family == "llama")


def test_answers_are_trained_and_words_stand_where_visual_tokens_will_be(family, tokenizer):
    batches = Batches(family, tokenizer, QUICK)
    for dialog in dialogs(40):
        ids, labels = batches.encode(dialog)
        trained = tokenizer.decode(labels[labels != IGNORED])
        ends = "<|im_end|>" + ("\n" if dialog.template == "chatml" else "")
        assert trained == "".join(answer + ends for _, answer in pairs(dialog))
        text = tokenizer.decode(ids)
        for tile in dialog.tiles:
            assert "".join(tile) in text


def test_batches_pad_at_the_end(family, tokenizer):
    batches = Batches(family, tokenizer, QUICK)
    for ids, labels in (batches.draw() for _ in range(60)):
        assert ids.shape == labels.shape and len(ids) == QUICK.batch
        for row in labels:
            counted = (row != IGNORED).nonzero()
            assert len(counted) and (row[int(counted[-1]) + 1 :] == IGNORED).all()


def test_what_is_written_loads_with_its_traits(family, built):
    model = AutoModelForCausalLM.from_pretrained(built)
    tokenizer = load_tokenizer(built)
    config = json.loads((built / "config.json").read_text())
    assert config["architectures"] == [
        {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[family]
    ]
    assert config["num_key_value_heads"] == 2 and config["num_attention_heads"] == 4
    assert not config["tie_word_embeddings"]
    assert len(tokenizer) <= config["vocab_size"] == 499
    biases = [name for name in model.state_dict() if name.endswith("_proj.bias")]
    assert len(biases) == (6 if family == "qwen2" else 0)
    index = json.loads((built / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    stored = set()
    for file in files:
        with safe_open(built / file, "pt") as opened:
            stored |= set(opened.keys())
    assert stored == set(model.state_dict())


def test_two_builds_give_the_same_bytes(family, tokenizer, built, tmp_path):
    again = learn_tokenizer(small(family), 470)
    write_language(tmp_path, train_language(small(family), again, QUICK), again, "50KB")
    names = sorted(path.name for path in built.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (built / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_missing_sections_say_so():
    with pytest.raises(UserError, match="architecture and training"):
        parse_params({"build": True}, LanguageStandin, "standin.lm_34b")


def test_a_tokenizer_beyond_the_embedding_is_refused():
    with pytest.raises(UserError, match="exceeds the 499 rows"):
        learn_tokenizer(small("llama"), 900)
