"""Tokenizers made from SentencePiece's: no piece of a conversation is marked as a first word.

The expected ids are those of the slow tokenizer with ``legacy=False`` (upstream's), worked out by
hand: text behind a control token begins as it is written.
"""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nvlm.checkpoint.huggingface.tokenizer import export_tokenizer, token_ids
from nvlm.checkpoint.huggingface.word_mark import without_word_mark
from nvlm.model.prompts import Turn
from nvlm.model.tokens import encode_conversation, load_tokenizer

BOS, START, END = 1, 2, 3
BYTES = 4  # id of <0x00>
PIECES = ["▁", *"aderstuin", "re", "red", "▁is", "us", "er", "user", "ant", "ass", "▁red"]
MERGES = ["r e", "re d", "i s", "▁ is", "u s", "e r", "us er", "▁ red", "a s", "as s"]
SPACE_TO_MARK = normalizers.Replace(" ", "▁")
WAYS = {
    # As LlamaTokenizerFast writes it, legacy and not.
    "prepend": (normalizers.Sequence([normalizers.Prepend("▁"), SPACE_TO_MARK]), None),
    "first": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "always": (
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always", split=False)]),
    ),
}


def vocabulary():
    names = ["<unk>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"]
    names += [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *"aderstuin"]
    return {name: n for n, name in enumerate([*names, *letters, "is", "as", *PIECES[10:]])}


VOCABULARY = vocabulary()
NEWLINE = BYTES + 10


@pytest.fixture(params=WAYS)
def directory(request, tmp_path):
    """A tokenizer as it is published."""
    merges = [tuple(pair.split()) for pair in MERGES]
    backend = Tokenizer(
        models.BPE(VOCABULARY, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer, backend.pre_tokenizer = WAYS[request.param]
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    backend.add_special_tokens(["<unk>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|startoftext|>", eos_token="<|im_end|>"
    ).save_pretrained(tmp_path)
    return tmp_path


def ids(*pieces):
    return [VOCABULARY[piece] for piece in pieces]


USER, ASSISTANT = ids("user"), ids("ass", "is", "t", "a", "n", "t")
TURNS = [Turn(role="user", text="a is red"), Turn(role="assistant", text="red")]
EXPECTED = [
    *(BOS, START, *USER, NEWLINE, *ids("a", "▁is", "▁red"), END, NEWLINE),
    *(START, *ASSISTANT, NEWLINE, *ids("red"), END, NEWLINE),
]


def encode(tokenizer, turns):
    return encode_conversation(
        turns,
        tokenizer,
        template="chatml",
        family="llama",
        tiles_per_image=[],
        tokens_per_tile=1,
        tile_tags=True,
    ).input_ids.tolist()


def test_no_piece_is_marked_as_a_first_word(directory):
    assert encode(load_tokenizer(directory), TURNS) == EXPECTED


def test_a_control_string_in_a_text_marks_nothing_behind_it(directory):
    turns = [Turn(role="user", text="a<|im_end|>a")]
    sequence = encode(load_tokenizer(directory), turns)
    assert VOCABULARY["▁"] not in sequence
    assert sequence[-3:] == [*ids("a"), END, NEWLINE]


def test_what_is_written_with_spaces_comes_back_with_them(directory):
    tokenizer = load_tokenizer(directory)
    assert encode(tokenizer, [Turn(role="user", text=" red")])[4:5] == ids("▁red")
    assert tokenizer.decode(ids("a", "▁is", "▁red")) == "a is red"


def test_an_export_encodes_a_whole_prompt_as_training_did(directory, tmp_path):
    destination = tmp_path / "export"
    destination.mkdir()
    names = ["tokenizer.json", "tokenizer_config.json"]
    ids = token_ids(directory)
    export_tokenizer(directory, destination, names, family="llama", ids=ids)
    exported = AutoTokenizer.from_pretrained(destination)
    prompt = "<|startoftext|><|im_start|>user\na is red<|im_end|>\n<|im_start|>assistant\nred"
    assert exported.encode(prompt, add_special_tokens=False) == EXPECTED[:-2]


def test_what_does_not_mark_is_left_as_it_is():
    backend = Tokenizer(models.BPE())
    for backend.pre_tokenizer, backend.normalizer in (
        (pre_tokenizers.ByteLevel(add_prefix_space=False), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), normalizers.NFC()),
        (None, normalizers.Sequence([normalizers.NFC(), SPACE_TO_MARK])),
    ):
        content = json.loads(backend.to_str())
        assert without_word_mark(content) == content


def test_the_older_spelling_of_a_mark():
    older = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    content = {**json.loads(Tokenizer(models.BPE()).to_str()), "pre_tokenizer": older}
    backend = Tokenizer.from_str(json.dumps(without_word_mark(content)))
    assert backend.pre_tokenizer.pre_tokenize_str("a b") == [("a", (0, 1)), ("▁b", (1, 3))]
