"""An image in a prompt: the token ids that training has for it. Needs no vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Of every decoder: an export's tokenizer makes of it what its decoder was trained on.
THUMBNAIL = "<tile_global_thumbnail>"


def image_ids(
    encode: Callable[[str], Sequence[int]], *, tiles: int, tokens_per_tile: int, image_token_id: int
) -> list[int]:
    """Ids of an image of ``tiles`` tiles, thumbnail included, and of the line break behind it.

    As in training, each tag is encoded apart from its neighbours, and `</Image>` together with the
    line break. vLLM 0.30 to 0.33 does it the other way round.
    """
    tags = [*(f"<tile_{number}>" for number in range(1, tiles)), THUMBNAIL]
    ids = list(encode("<Image>"))
    for tag in tags:
        ids += [*encode(tag), *[image_token_id] * tokens_per_tile]
    return ids + list(encode("</Image>\n"))
