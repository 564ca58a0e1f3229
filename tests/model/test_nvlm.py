"""Packing and embedding of the whole model."""

import pytest
import torch

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.model.attention import packed_mask
from nvlm.model.language import Stage
from nvlm.model.nvlm import NVLM, features_by_row

VISION = VisionArchitecture(
    hidden_size=24,
    layers=1,
    heads=3,
    ffn_hidden_size=48,
    image_size=24,
    patch_size=6,
    norm_epsilon=1e-6,
)


def language(family: str) -> LanguageArchitecture:
    return LanguageArchitecture(
        family=family,
        hidden_size=32,
        layers=2,
        heads=4,
        query_groups=2,
        ffn_hidden_size=64,
        norm_epsilon=1e-5,
        rope_theta=1e6,
        vocabulary=50,
        max_positions=128,
    )


@pytest.fixture(params=["llama", "qwen2"])
def model(request) -> NVLM:
    torch.manual_seed(0)
    architecture = Architecture(vision=VISION, language=language(request.param))
    return NVLM(architecture, 64, Stage(first=0, last=2)).eval()


def test_the_mask_is_causal_within_a_segment_and_closed_between(model):
    mask = packed_mask(torch.tensor([[1, 1, 2, 0]]), torch.float32)
    assert mask is not None
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert torch.equal(mask[0, 0].exp(), expected.float())


def test_packed_samples_give_the_logits_they_give_alone(model):
    tiles = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    features = model.encode_tiles(tiles)  # 4 visual tokens a tile
    first = {"ids": [5, 0, 0, 0, 0, 6, 7], "visual": [-1, 0, 1, 2, 3, -1, -1]}
    second = {"ids": [8, 9, 0, 0, 0, 0, 0, 0, 0, 0, 3], "visual": [-1, -1, *range(8), -1]}

    def run(ids, visual, segments, positions, features):
        with torch.no_grad():
            hidden = model(
                torch.tensor([ids]),
                position_ids=torch.tensor([positions]),
                segment_ids=torch.tensor([segments]),
                visual_index=torch.tensor([visual]),
                features=features.flatten(0, 1)[None],
            )
            return model.language_model.lm_head(hidden)[0]

    alone = [
        run(first["ids"], first["visual"], [1] * 7, range(7), features[:1]),
        run(second["ids"], second["visual"], [1] * 11, range(11), features[1:]),
    ]
    moved = [index + 4 if index >= 0 else -1 for index in second["visual"]]
    packed = run(
        first["ids"] + second["ids"],
        first["visual"] + moved,
        [1] * 7 + [2] * 11,
        [*range(7), *range(11)],
        features,
    )
    torch.testing.assert_close(packed, torch.cat(alone))


def test_features_by_row_pads_rows_that_have_fewer_tiles():
    features = torch.arange(1.0, 4.0).view(3, 1, 1).expand(3, 2, 1)
    rows = features_by_row(features, torch.tensor([2, 0, 1]))
    assert rows[..., 0].tolist() == [[1, 1, 2, 2], [0, 0, 0, 0], [3, 3, 0, 0]]
    assert features_by_row(features[:0], torch.tensor([0])).shape == (1, 2, 1)


def test_generation_is_the_argmax_of_the_full_forward_and_ignores_padding(model):
    """Greedy decoding with a cache, left padding and mixed tiles, against plain forward passes."""
    tiles = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    prompts = [([5, 0, 0, 0, 0, 6], [-1, 0, 1, 2, 3, -1], 1), ([7] + [0] * 8, [-1, *range(8)], 2)]
    length = max(len(ids) for ids, _, _ in prompts)
    batch = {
        "input_ids": torch.tensor([[0] * (length - len(ids)) + ids for ids, _, _ in prompts]),
        "attention_mask": torch.tensor(
            [[0] * (length - len(ids)) + [1] * len(ids) for ids, _, _ in prompts]
        ),
        "visual_index": torch.tensor([[-1] * (length - len(ids)) + v for ids, v, _ in prompts]),
    }
    counts = torch.tensor([count for _, _, count in prompts])
    encoded = model.encode_tiles(tiles)
    embedded = model.embed(
        batch["input_ids"], batch["visual_index"], features_by_row(encoded, counts)
    )
    answer = model.generate(embedded, batch["attention_mask"], max_new_tokens=4, stop_ids=[49])
    start = 0
    for row, (prompt, places, count) in enumerate(prompts):
        features = model.encode_tiles(tiles[start : start + count]).flatten(0, 1)[None]
        start += count
        ids, visual = list(prompt), list(places)
        for token in answer[row].tolist():
            with torch.no_grad():
                hidden = model(
                    torch.tensor([ids]),
                    position_ids=torch.arange(len(ids))[None],
                    segment_ids=torch.ones(1, len(ids), dtype=torch.long),
                    visual_index=torch.tensor([visual]),
                    features=features,
                )
                logits = model.language_model.lm_head(hidden)[0, -1, :50]
            assert token == logits.argmax().item()
            if token == 49:
                break
            ids.append(token)
            visual.append(-1)
