"""Ids, labels and visual indices against sequences put together by hand.

The tokenizer has no merges: a token a byte, whose ids the tests look up themselves.
"""

import copy

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nvlm.errors import UserError
from nvlm.model.prompts import Turn
from nvlm.model.tokens import encode_conversation, load_tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
START, END, BOS, PAD = 256, 257, 258, 259
# How byte-level tokenizers write the two characters that are not their own letter.
WRITTEN = {" ": "Ġ", "\n": "Ċ"}


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(ALPHABET)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|startoftext|>"])
    backend.add_tokens([AddedToken("<|vision_pad|>", special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|startoftext|>", eos_token="<|im_end|>"
    )


def ids(text):
    return [ALPHABET.index(WRITTEN.get(letter, letter)) for letter in text]


def encode(tokenizer, conversation, **overrides):
    settings = {
        "template": "chatml",
        "family": "qwen2",
        "tiles_per_image": [3],
        "tokens_per_tile": 2,
        "tile_tags": True,
    }
    return encode_conversation(conversation, tokenizer, **{**settings, **overrides})


CONVERSATION = [Turn(role="user", text="<image>\nHow?"), Turn(role="assistant", text="So.")]


def test_chatml_with_three_tagged_tiles(tokenizer):
    encoded = encode(tokenizer, CONVERSATION)
    pieces = [
        ([START, *ids("user\n<Image>")], []),
        (ids("<tile_1>"), [0, 1]),
        (ids("<tile_2>"), [2, 3]),
        (ids("<tile_global_thumbnail>"), [4, 5]),
        ([*ids("</Image>\nHow?"), END, *ids("\n"), START, *ids("assistant\n")], []),
    ]
    prompt, visual = [], []
    for text, tokens in pieces:
        prompt += text + [0] * len(tokens)
        visual += [-1] * len(text) + tokens
    answer = [*ids("So."), END, *ids("\n")]
    assert encoded.input_ids.tolist() == prompt + answer
    assert encoded.visual_index.tolist() == visual + [-1] * len(answer)
    # The position before an answer's token is the one that must predict it.
    assert encoded.labels.tolist() == [-100] * (len(prompt) - 1) + answer + [-100]
    for array in (encoded.input_ids, encoded.labels, encoded.visual_index):
        assert array.dtype == np.int64


def test_llama_starts_with_bos_and_has_its_own_thumbnail_tag(tokenizer):
    encoded = encode(tokenizer, CONVERSATION, family="llama", tiles_per_image=[1])
    expected = [BOS, START, *ids("user\n<Image><tile_global>"), 0, 0, *ids("</Image>\nHow?"), END]
    assert encoded.input_ids[: len(expected)].tolist() == expected
    assert encoded.labels[0] == -100


def test_plain_without_tags(tokenizer):
    encoded = encode(
        tokenizer, CONVERSATION, template="plain", tile_tags=False, tiles_per_image=[2]
    )
    prompt = [*ids("<Image>"), 0, 0, 0, 0, *ids("</Image>\nHow? ")]
    answer = [*ids("So."), END]
    assert encoded.input_ids.tolist() == prompt + answer
    assert encoded.labels.tolist() == [-100] * (len(prompt) - 1) + answer + [-100]
    assert encoded.visual_index[7:11].tolist() == [0, 1, 2, 3]


def test_two_images_share_one_numbering(tokenizer):
    turns = [Turn(role="user", text="<image><image>?"), Turn(role="assistant", text="!")]
    encoded = encode(tokenizer, turns, tiles_per_image=[1, 3])
    assert encoded.visual_index[encoded.visual_index >= 0].tolist() == list(range(8))
    assert (encoded.input_ids[encoded.visual_index >= 0] == 0).all()


def test_generation_prompt_is_the_beginning_of_the_training_sequence(tokenizer):
    whole = encode(tokenizer, CONVERSATION)
    prompt = encode(tokenizer, CONVERSATION[:1], generation=True)
    assert prompt.input_ids.tolist() == whole.input_ids[: len(prompt)].tolist()
    assert whole.labels[len(prompt) - 1] == ids("S")[0]
    assert (prompt.labels == -100).all()


@pytest.mark.parametrize("text", ["<|im_end|>", "x<<|vision_pad|>", "<|im_<|im_start|>start|>"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_control_strings_in_a_text_stay_text(tokenizer, text, role):
    turns = [Turn(role="user", text="a"), Turn(role="assistant", text="b")]
    turns = [Turn(role=turn.role, text=text) if turn.role == role else turn for turn in turns]
    encoded = encode(tokenizer, turns, tiles_per_image=[])
    assert (encoded.input_ids == START).sum() == 2
    assert (encoded.input_ids == END).sum() == 2
    assert PAD not in encoded.input_ids
    sequence = encoded.input_ids.tolist()
    spelt = ids(text)
    assert any(sequence[at : at + len(spelt)] == spelt for at in range(len(sequence)))


def test_the_conversation_is_left_alone_and_encodes_the_same_twice(tokenizer):
    turns = copy.deepcopy(CONVERSATION)
    first, second = encode(tokenizer, turns), encode(tokenizer, turns)
    assert turns == CONVERSATION
    assert first.input_ids.tolist() == second.input_ids.tolist()


@pytest.mark.parametrize("tiles", [[], [1, 1]])
def test_images_must_match_the_text(tokenizer, tiles):
    with pytest.raises(ValueError, match="1 images in the text"):
        encode(tokenizer, CONVERSATION, tiles_per_image=tiles)


def test_a_tokenizer_without_chatml_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(UserError, match="im_start"):
        encode(bare, CONVERSATION)


def test_tokenizers_are_loaded_from_a_directory(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    first, second = encode(tokenizer, CONVERSATION), encode(loaded, CONVERSATION)
    assert first.input_ids.tolist() == second.input_ids.tolist()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")
