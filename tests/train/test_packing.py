"""What a row holds is no matter: samples packed, one a row, or all without an image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.data.small import byte_tokenizer
from tests.parallel.grids import make_checkpoint, train_params
from torch.distributed.tensor import DTensor

from nvlm.data.loading.batch import EncodedSample, collate
from nvlm.data.loading.encoder import pack
from nvlm.launch.local import launch
from nvlm.model.prompts import Turn
from nvlm.model.tokens import encode_conversation
from nvlm.parallel.grid import GridParams
from nvlm.parallel.loss import turn_weights
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.sequence import reduce_shared
from nvlm.train.trainer import Trainer

ALONE = GridParams(tensor=1)
BOTH = ["vision_projection", "language_model"]
LENGTH, LONG, TOKENS_PER_TILE, TILE = 512, 1200, 4, 24
VOCABULARY = 258
TOKENIZER = byte_tokenizer()


def samples(tiles_of_images):
    """One sample for each of ``tiles_of_images``, with random tiles: its images' tile counts."""
    rng = np.random.default_rng(0)
    encoded = []
    for number, tiles_per_image in enumerate(tiles_of_images):
        turns = []
        for turn in range(1 + number % 3):
            marks = "<image>\n" * (len(tiles_per_image) if turn == 0 else 0)
            turns.append(Turn(role="user", text=f"{marks}What is {number}, {turn}?"))
            turns.append(Turn(role="assistant", text="It is" + " so" * int(rng.integers(9))))
        conversation = encode_conversation(
            turns,
            TOKENIZER,
            template="chatml",
            family="qwen2",
            tiles_per_image=tiles_per_image,
            tokens_per_tile=TOKENS_PER_TILE,
            tile_tags=True,
        )
        tiles = rng.integers(0, 256, (sum(tiles_per_image), TILE, TILE, 3), dtype=np.uint8)
        encoded.append(EncodedSample(key=str(number), conversation=conversation, tiles=tiles))
    return encoded


def packed(given):
    """The samples in the rows that the loader's packing makes of them."""
    rows = pack(given, [len(sample) for sample in given], LENGTH)
    assert len(rows) < len(given) / 2
    return collate(rows, LENGTH)


def one_a_row(given):
    return collate([[sample] for sample in given], LENGTH)


MIXED = samples([[1], [], [3], [1, 2], [], [7], [1], [], [1, 1, 1], [4], [1], []])
TEXT_ONLY = samples([[]] * 12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("packing")
    return make_checkpoint(directory, "qwen2", ALONE, vocabulary=VOCABULARY)


def loss_and_gradients(checkpoint, grid, mesh, batch, whole=None, **changes):
    """Loss of ``batch`` and the whole gradient of every parameter, both over the answers' weight.

    Where ``batch`` is a replica's share, that of the ``whole``.
    """
    params = replace(train_params(grid, BOTH, 20), micro_batch=1, **changes)
    trainer = Trainer(params, checkpoint, mesh)
    labels = batch.labels if whole is None else whole.labels
    weight = turn_weights(labels, params.turn_weighting).sum().item()
    loss = trainer.runner.run(batch, 1 / weight).double().sum().item() / weight
    if trainer.model.split is not None:
        reduce_shared(trainer.model, mesh.tensor)
    gradients = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            assert gradient is not None, name
            full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            # What is beyond the vocabulary depends on the number of tensor ranks.
            gradients[name] = full[:VOCABULARY] if "embed" in name or "lm_head" in name else full
    return loss, gradients


@pytest.fixture
def alone(checkpoint, monkeypatch):
    """``loss_and_gradients`` in this process, whose group is gone before ranks are started."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    place["MASTER_PORT"] = "0"

    def run(batch, **changes):
        with monkeypatch.context() as environment:
            for name, value in place.items():
                environment.setenv(name, value)
            with parallel_mesh(ALONE) as mesh:
                return loss_and_gradients(checkpoint, ALONE, mesh, batch, **changes)

    return run


def assert_same(first, second):
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        torch.testing.assert_close(gradient, second[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("weighting", ["token", "square_root"])
def test_packed_samples_learn_what_they_learn_one_a_row(weighting, alone):
    changes = {"turn_weighting": weighting}
    together = alone(packed(MIXED), **changes)
    apart = alone(one_a_row(MIXED), **changes)
    assert 1 < apart[0] < 100
    assert_same(together, apart)


def test_neighbours_would_be_seen_without_their_borders(alone):
    batch = packed(MIXED)
    mixed_up = replace(batch, segment_ids=batch.segment_ids.clamp(max=1))
    loss, _ = alone(mixed_up)
    apart, _ = alone(one_a_row(MIXED))
    assert abs(loss - apart) > 1e-3


def test_a_batch_without_an_image(alone):
    together = alone(packed(TEXT_ONLY))
    apart = alone(one_a_row(TEXT_ONLY))
    assert packed(TEXT_ONLY).tiles.shape == (0, 3, TILE, TILE)
    assert 1 < apart[0] < 100
    assert_same(together, apart)
    for name, gradient in together[1].items():
        # Every parameter is reduced over all ranks, and the optimizer steps with what that gives.
        assert bool(gradient.any()) == ("vision_projection" not in name), name


def write_loss_and_gradients(checkpoint, grid, out):
    """Worker: those of the text-only batch; of its two rows each replica has its share."""
    rows = [TEXT_ONLY[:6], TEXT_ONLY[6:]]
    with parallel_mesh(grid) as mesh:
        batch = collate(rows[mesh.data_rank :: grid.data], LONG)
        result = loss_and_gradients(checkpoint, grid, mesh, batch, whole=collate(rows, LONG))
        torch.save(result, out / f"{dist.get_rank()}.pt")


@pytest.mark.parametrize("grid", [GridParams(tensor=2), GridParams(tensor=1, shard=2)])
def test_a_batch_without_an_image_on_two_ranks(grid, alone, tmp_path):
    expected = alone(one_a_row(TEXT_ONLY))
    split = make_checkpoint(tmp_path / "split", "qwen2", grid, vocabulary=VOCABULARY)
    launch(write_loss_and_gradients, 2, split, grid, tmp_path)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    losses = [loss for loss, _ in results]
    assert_same((sum(losses) if grid.data == 2 else losses[1], results[0][1]), expected)
