"""A loader stopped after any batch and restored gives the same remaining stream."""

import multiprocessing
import os
import traceback
from dataclasses import fields
from itertools import islice

import pytest
import torch
from tests.data.small import byte_tokenizer, small_architecture

from nvlm.data.loading.batch import Batch
from nvlm.data.loading.loader import build_loader
from nvlm.data.loading.params import LoaderParams

pytestmark = pytest.mark.filterwarnings("ignore")

BATCHES = 9


def build(datasets, workers, packing):
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
        tokenizer=byte_tokenizer(),
        architecture=small_architecture(),
        rows=3,
        rank=0,
        world=1,
    )


def same(first, second):
    told = first.keys == second.keys and first.lengths == second.lengths
    return told and all(
        torch.equal(getattr(first, field.name), getattr(second, field.name))
        for field in fields(Batch)
        if field.name not in ("keys", "lengths", "shortfalls")
    )


def check(datasets, workers, packing, stops):
    """Assert that what follows each number of batches in ``stops`` comes again; the loaders."""
    loader = build(datasets, workers, packing)
    stream, batches, states = iter(loader), [], []
    for _ in range(BATCHES):
        batches.append(next(stream))
        states.append(loader.save_state_rank())
    loaders = [loader]
    for number in stops:
        restored = build(datasets, workers, packing)
        restored.restore_state_rank(states[number - 1])
        rest = list(islice(restored, BATCHES - number))
        assert all(same(*pair) for pair in zip(batches[number:], rest, strict=True))
        loaders.append(restored)
    return loaders


@pytest.mark.parametrize("packing", [True, False])
def test_after_every_batch_without_workers(datasets, packing):
    check(datasets, 0, packing, range(1, BATCHES))


def check_workers(datasets):
    """All cases with workers, in a process that ends at once.

    To drop a loader properly takes PyTorch five seconds a worker; orphaned workers end themselves.
    """
    try:
        cases = [(workers, packing) for workers in (1, 2) for packing in (True, False)]
        loaders = [check(datasets, *case, stops=(1, 4)) for case in cases]
        os._exit(0 if len(loaders) == 4 else 1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def test_with_one_and_two_workers(datasets):
    process = multiprocessing.get_context("spawn").Process(target=check_workers, args=(datasets,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
