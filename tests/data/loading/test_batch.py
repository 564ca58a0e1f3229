"""Rows laid out by hand."""

import numpy as np
import pytest
import torch

from nvlm.data.loading.batch import EncodedSample, collate
from nvlm.model.tokens import EncodedConversation


def sample(ids, labels, visual, tiles):
    return EncodedSample(
        key="sample",
        conversation=EncodedConversation(
            input_ids=np.array(ids), labels=np.array(labels), visual_index=np.array(visual)
        ),
        tiles=np.array(tiles, dtype=np.uint8).reshape(-1, 1, 1, 1)
        * np.ones((1, 2, 2, 3), np.uint8),
    )


FIRST = sample([5, 0, 0, 6], [-100, -100, 6, -100], [-1, 0, 1, -1], [10])
SECOND = sample([7, 0, 8], [-100, 8, -100], [-1, 0, -1], [20])
TEXT_ONLY = sample([9, 9], [9, -100], [-1, -1], [])


def test_two_rows():
    batch = collate([[FIRST, SECOND], [TEXT_ONLY, SECOND]], 8)
    assert batch.input_ids.tolist() == [[5, 0, 0, 6, 7, 0, 8, 0], [9, 9, 7, 0, 8, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 7], [0, 1, 0, 1, 2, 5, 6, 7]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 2, 0, 0, 0]]
    assert batch.segment_lengths.tolist() == [[4, 3, 1], [2, 3, 3]]
    assert batch.lengths == [7, 5]
    assert batch.labels.tolist() == [
        [-100, -100, 6, -100, -100, 8, -100, -100],
        [9, -100, -100, 8, -100, -100, -100, -100],
    ]
    assert batch.visual_index.tolist() == [
        [-1, 0, 1, -1, -1, 2, -1, -1],
        [-1, -1, -1, 0, -1, -1, -1, -1],
    ]
    assert batch.tiles_per_row.tolist() == [2, 1]
    assert batch.tiles.shape == (3, 3, 2, 2)
    assert batch.tiles.dtype == torch.uint8
    assert batch.tiles[:, 0, 0, 0].tolist() == [10, 20, 20]


def test_channels_come_first():
    tiles = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(1, 2, 2, 3)
    encoded = EncodedSample(key="sample", conversation=FIRST.conversation, tiles=tiles)
    assert collate([[encoded]], 4).tiles[0, 1].tolist() == [[1, 4], [7, 10]]


def test_nothing_is_cut():
    with pytest.raises(ValueError, match="7 tokens in a row of 6"):
        collate([[FIRST, SECOND]], 6)


def test_moving():
    moved = collate([[FIRST]], 4).to("meta")
    assert moved.tiles.device.type == moved.labels.device.type == "meta"
