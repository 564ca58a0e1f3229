"""A loader stopped after any batch and restored gives the same remaining stream."""

from dataclasses import fields
from itertools import islice

import pytest
import torch

from nvlm.data.batch import Batch
from nvlm.data.loader import LoaderParams, build_loader

pytestmark = pytest.mark.filterwarnings("ignore")

BATCHES = 9


@pytest.fixture
def build(datasets, tokenizer, architecture):
    def build(workers, packing):
        params = LoaderParams(
            blend={"captions": 1.0, "strips": 2.0, "choices": 1.0},
            sequence_length=300,  # some samples lose tiles, some are skipped
            packing=packing,
            template="chatml",
            max_tiles=6,
            thumbnail=True,
            tile_tags=True,
            workers=workers,
            shuffle_buffer=20,
            seed=5,
        )
        return build_loader(
            datasets,
            params,
            tokenizer=tokenizer,
            architecture=architecture,
            rows=3,
            rank=0,
            world=1,
        )

    return build


def same(first, second):
    return all(
        torch.equal(getattr(first, field.name), getattr(second, field.name))
        for field in fields(Batch)
    )


def batches_and_states(loader, batches):
    """Batches of ``loader``, and its state after each of them."""
    stream, seen, states = iter(loader), [], []
    for _ in range(batches):
        seen.append(next(stream))
        states.append(loader.save_state_rank())
    return seen, states


@pytest.mark.parametrize("packing", [True, False])
def test_after_every_batch_without_workers(build, packing):
    batches, states = batches_and_states(build(0, packing), BATCHES)
    for number, state in enumerate(states, start=1):
        restored = build(0, packing)
        restored.restore_state_rank(state)
        rest = list(islice(restored, BATCHES - number))
        assert all(same(*pair) for pair in zip(batches[number:], rest, strict=True))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_with_workers(build, packing, workers):
    batches, states = batches_and_states(build(workers, packing), BATCHES)
    for number in (1, 4):
        restored = build(workers, packing)
        restored.restore_state_rank(states[number - 1])
        rest = list(islice(restored, BATCHES - number))
        assert all(same(*pair) for pair in zip(batches[number:], rest, strict=True))
