"""Tied embeddings: one matrix, whether both ends are in one process or on two pipeline stages."""

import pytest
import torch
from tests.parallel.grids import (
    VOCABULARY,
    make_batch,
    make_checkpoint,
    write_logits,
    write_losses,
)
from tests.parallel.test_equivalence import GRIDS, transformers_logits
from torch.nn import functional
from transformers import AutoModelForCausalLM

from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.manifest import check_digests, read_manifest
from nvlm.launch.local import launch
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.state import load_model

BOTH = ["vision_projection", "language_model"]
EMBEDDING, HEAD = "language_model.embedding", "language_model.head"


def test_logits_equal_transformers_with_tied_weights(tmp_path):
    for name in ("one process", "TP=2", "TP=2 x PP=2"):
        grid = GRIDS.get(name, GridParams(tensor=1))
        checkpoint = make_checkpoint(tmp_path / name, "qwen2", grid, tied=True)
        launch(write_logits, grid.processes, checkpoint, grid, tmp_path / name / "logits.pt")
        logits = torch.load(tmp_path / name / "logits.pt")
        if name == "one process":
            batch, expected = transformers_logits(tmp_path / name)
        counted = batch.segment_ids > 0
        torch.testing.assert_close(logits[counted], expected[counted], atol=1e-5, rtol=1e-5)


def write_gradient(checkpoint, out):
    """Worker: the matrix's gradient for the text of a batch, in one process."""
    with parallel_mesh(GridParams(tensor=1)) as mesh:
        model = load_model(checkpoint, mesh, torch.float32, trained=BOTH)
        ids = make_batch(2, seed=3).input_ids
        hidden = model(ids, position_ids=torch.arange(ids.shape[1]).expand_as(ids))
        logits = model.language_model.lm_head(hidden)[..., :VOCABULARY]
        functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        torch.save(model.language_model.model.embed_tokens.weight.grad, out)


def test_its_gradient_is_that_of_transformers(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "qwen2", GridParams(tensor=1), tied=True)
    launch(write_gradient, 1, checkpoint, tmp_path / "gradient.pt")
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "hf_language")
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    ids = make_batch(2, seed=3).input_ids
    functional.cross_entropy(decoder(ids).logits.flatten(0, 1), ids.flatten()).backward()
    gradient = torch.load(tmp_path / "gradient.pt")[:VOCABULARY]
    torch.testing.assert_close(gradient, decoder.lm_head.weight.grad, atol=1e-6, rtol=1e-5)


def train(directory, grid, steps=20, **changes):
    """(loss, gradient norm) of each step; the checkpoint after them is in ``trained``."""
    checkpoint = make_checkpoint(directory, "qwen2", grid, tower="300M", tied=True)
    launch(write_losses, grid.processes, checkpoint, grid, BOTH, directory, steps, changes)
    return torch.load(directory / "history.pt")


def table(checkpoint):
    """The embedding's rows, put together from the ranks."""
    ranks = range(read_manifest(checkpoint).grid.tensor)
    parts = [read_part(checkpoint, rank, EMBEDDING)["word_embeddings.weight"] for rank in ranks]
    return torch.cat(parts)[:VOCABULARY]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    return train(directory, GridParams(tensor=1)), directory


@pytest.mark.parametrize("name", ["TP=2", "PP=2", "TP=2 x PP=2", "DP=2 x TP=2"])
def test_curves_equal_one_process(name, alone, tmp_path):
    """Loss and norm, in which the matrix counts once; and the matrix after twenty steps."""
    history = train(tmp_path, GRIDS[name])
    torch.testing.assert_close(history, alone[0], atol=1e-5, rtol=1e-5)
    trained, expected = table(tmp_path / "trained"), table(alone[1] / "trained")
    torch.testing.assert_close(trained, expected, atol=1e-4, rtol=1e-4)
    assert (expected - table(alone[1] / "combined")).abs().max() > 1e-3
    check_digests(tmp_path / "trained", read_manifest(tmp_path / "trained"))
    for rank in range(GRIDS[name].tensor):
        assert read_part(tmp_path / "trained", rank, HEAD).keys() == {"final_layernorm.weight"}


def test_stages_between_the_ends_and_shards(tmp_path):
    """The two middle stages have neither end; bf16 beneath fp32 masters, which are sharded."""
    changes = {"dtype": "bfloat16", "keep_gathered": True, "micro_batch": 1}
    many = train(tmp_path / "many", GridParams(tensor=1, pipeline=4, shard=2), 6, **changes)
    one = train(tmp_path / "one", GridParams(tensor=1), 6, **changes)
    torch.testing.assert_close(many, one, atol=0.02, rtol=0.02)
