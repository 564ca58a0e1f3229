"""The plugin's prompt, with a tokenizer that nobody has mended: the ids of training."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from nvlm.model.prompts import Turn
from nvlm.model.tokens import TEXT, encode_conversation
from nvlm.serving.prompt import image_ids
from nvlm.standin.tokenizer import train_tokenizer

IMAGE_TOKEN, TOKENS_PER_TILE = 9999, 3


@pytest.mark.parametrize("tiles", [1, 2, 7])
def test_an_image_has_the_ids_of_training(tiles):
    texts = ["<Image><tile_1></Image>\n<tile_global_thumbnail>"] * 50
    tokenizer = train_tokenizer("qwen2", texts, 400)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    assert len(encode("</Image>\n")) < len(encode("</Image>") + encode("\n"))
    encoded = encode_conversation(
        [Turn(role="user", text="<image>\n")],
        tokenizer,
        template="plain",
        family="qwen2",
        tiles_per_image=[tiles],
        tokens_per_tile=TOKENS_PER_TILE,
        tile_tags=True,
    )
    pairs = zip(encoded.input_ids, encoded.visual_index, strict=True)
    trained = [int(token) if place == TEXT else IMAGE_TOKEN for token, place in pairs]
    ids = image_ids(
        encode, tiles=tiles, tokens_per_tile=TOKENS_PER_TILE, image_token_id=IMAGE_TOKEN
    )
    assert [*ids, *encode(" ")] == trained  # the plain template ends a prompt with a space


def test_the_entry_point_is_there():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["vllm.general_plugins"]["nvlm"].partition(":")
    assert callable(getattr(import_module(module), name))
