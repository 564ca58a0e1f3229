"""What the options of a run change in a step, and how a run that diverges ends."""

from dataclasses import replace

import pytest
import torch
from tests.parallel.grids import make_batch, make_checkpoint, train_params

from nvlm.errors import UserError
from nvlm.launch.local import launch
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.train.trainer import Trainer

ALONE = GridParams(tensor=1)
BOTH = ["vision_projection", "language_model"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("trainer"), "qwen2", ALONE)


def losses_of(checkpoint, mesh, steps=3, **changes):
    params = replace(train_params(ALONE, BOTH, 20), **changes)
    trainer = Trainer(params, checkpoint, mesh)
    return [trainer.step(n, make_batch(8, seed=n)).loss for n in range(1, steps + 1)]


def test_activation_checkpointing_and_micro_batches_change_nothing(checkpoint, mesh):
    plain = losses_of(checkpoint, mesh)
    assert losses_of(checkpoint, mesh, recompute_every=1) == plain
    assert losses_of(checkpoint, mesh, micro_batch=4) == pytest.approx(plain, abs=1e-6)


def test_a_compiled_decoder_learns_the_same(checkpoint, mesh):
    plain = losses_of(checkpoint, mesh)
    assert losses_of(checkpoint, mesh, compile=True) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("dropout", ["attention_dropout", "hidden_dropout"])
def test_dropout_changes_the_steps_and_is_the_same_at_every_run(dropout, checkpoint, mesh):
    once, again = (losses_of(checkpoint, mesh, **{dropout: 0.2}) for _ in range(2))
    assert once == again
    assert once != pytest.approx(losses_of(checkpoint, mesh), abs=1e-3)
    recomputed = losses_of(checkpoint, mesh, **{dropout: 0.2}, recompute_every=1)
    assert recomputed == once


def test_turns_weighted_by_the_root_of_their_length_give_another_mean(checkpoint, mesh):
    """The loss of a row of two turns by hand, from the mean loss of each."""
    params = train_params(ALONE, BOTH, 20)
    batch = make_batch(8, seed=1)
    turns = {1: slice(6, 8), 2: slice(15, 20)}  # tokens of the two samples of row 3

    def with_turns(*chosen):
        labels = torch.full_like(batch.labels, -100)
        for turn in chosen:
            labels[3, turns[turn]] = batch.input_ids[3, turns[turn]]
        return replace(batch, labels=labels)

    short, long = (
        Trainer(params, checkpoint, mesh).step(1, with_turns(turn)).loss for turn in turns
    )
    weighted = Trainer(replace(params, turn_weighting="square_root"), checkpoint, mesh)
    expected = (2**0.5 * short + 5**0.5 * long) / (2**0.5 + 5**0.5)
    assert weighted.step(1, with_turns(1, 2)).loss == pytest.approx(expected, abs=1e-5)


def test_a_loss_that_is_no_number_names_the_samples_of_its_micro_batch(checkpoint, mesh):
    trainer = Trainer(train_params(ALONE, BOTH, 20), checkpoint, mesh)
    batch = make_batch(8, seed=1)
    unused = next(i for i in range(101) if i not in batch.input_ids)
    trainer.model.language_model.model.embed_tokens.weight.data[unused] = torch.nan
    batch.input_ids[5, -4] = unused
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with pytest.raises(UserError, match=r"step 3: the loss is nan.*samples 4\.first, 4\.second, 5"):
        trainer.step(3, batch)
    for parameter, old in zip(trainer.model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old, rtol=0, atol=0, equal_nan=True)


def test_an_exploding_norm_stops_the_run_and_names_all_samples(checkpoint, mesh):
    params = replace(train_params(ALONE, BOTH, 20), stop_above_norm=1e-6)
    trainer = Trainer(params, checkpoint, mesh)
    with pytest.raises(UserError, match=r"stop_above_norm, 1e-06.*0\.first, 0\.second, 1\.first"):
        trainer.step(1, make_batch(8, seed=1))


def diverge_on_the_last_stage(checkpoint) -> None:
    """Worker: a loss that is no number, on a grid whose first rank sees no loss."""
    grid = GridParams(tensor=1, pipeline=2)
    with parallel_mesh(grid) as mesh:
        trainer = Trainer(train_params(grid, BOTH, 20), checkpoint, mesh)
        if mesh.is_last:
            trainer.model.language_model.lm_head.weight.data[0] = torch.nan
        trainer.step(1, make_batch(8, seed=1))


def test_ranks_of_a_pipeline_end_together(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "qwen2", GridParams(tensor=1, pipeline=2))
    with pytest.raises(UserError, match="step 1: the loss is nan"):
        launch(diverge_on_the_last_stage, 2, checkpoint)
