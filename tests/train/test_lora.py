"""Low-rank adaptation: the mathematics of a plain LoRA, on every grid, and back after a kill."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tests.parallel.grids import make_batch, make_checkpoint, train_params, write_losses
from tests.train.test_resume import content, params_of
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

from compose_params import composed
from nvlm.checkpoint.format.adapter import TARGETS, adapter_path
from nvlm.checkpoint.format.files import read_tensors
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.format.published import QWEN2_72B
from nvlm.checkpoint.parts.adapter import fresh_matrices
from nvlm.errors import UserError
from nvlm.launch.local import launch
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.params import parse_params
from nvlm.train.curves import Curves
from nvlm.train.loop import train
from nvlm.train.lora import LoraParams
from nvlm.train.optimizer import learning_rate
from nvlm.train.params import TrainParams
from nvlm.train.telemetry.logs import Logs
from nvlm.train.trainer import Trainer

ALONE = GridParams(tensor=1)
BOTH = ["vision_projection", "language_model"]
LORA = LoraParams(rank=4, alpha=8.0, dropout=0.0, targets=list(TARGETS))
STEPS = 8
GRIDS = {
    "TP=2": (GridParams(tensor=2), {}),
    "TP=2, whole sequences": (GridParams(tensor=2), {"sequence_parallel": False}),
    "TP=2, compiled": (GridParams(tensor=2), {"compile": True, "recompute_every": 1}),
    "PP=2": (GridParams(tensor=1, pipeline=2), {}),
    "TP=2 x PP=2": (GridParams(tensor=2, pipeline=2), {}),
    "DP=2": (GridParams(tensor=1, shard=2), {}),
    "replicate 2 x TP=2": (GridParams(tensor=2, replicate=2), {"keep_gathered": True}),
}


class LowRank(nn.Module):
    """W + alpha / rank * B A, as the paper has it (arXiv 2106.09685, section 4.1)."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + LORA.alpha / LORA.rank * (self.up @ self.down)


def plain_lora(directory, embedded, params):
    """Losses of transformers' own decoder with LoRA written by hand, sample by sample."""
    decoder = AutoModelForCausalLM.from_pretrained(directory / "hf_language").eval()
    decoder.requires_grad_(False)
    architecture = read_manifest(directory / "combined").architecture.language
    for number, layer in enumerate(decoder.model.layers):
        matrices = fresh_matrices(architecture, LORA.adapter, number, params.seed)
        for name in TARGETS.values():
            low = LowRank(matrices[f"{name}.lora_A"], matrices[f"{name}.lora_B"])
            parametrize.register_parametrization(layer.get_submodule(name), "weight", low)
    trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 4
    optimizer = torch.optim.AdamW(trained, betas=params.betas, weight_decay=params.weight_decay)
    losses = []
    for step, inputs in enumerate(embedded, start=1):
        batch, total = make_batch(8, seed=step), torch.zeros(())
        for row in range(8):
            for sample in (slice(0, 14), slice(14, 21)):
                logits = decoder(inputs_embeds=inputs[row : row + 1, sample]).logits[0]
                labels = batch.labels[row, sample]
                total = total + nn.functional.cross_entropy(logits, labels, reduction="sum")
        loss = total / batch.labels.ne(-100).sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, params.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, params)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss.item(), norm.item()))
    return losses


def test_one_process_is_a_plain_lora(tmp_path, mesh):
    checkpoint = make_checkpoint(tmp_path, "qwen2", ALONE)
    params = replace(train_params(ALONE, ["language_model"], 20), lora=LORA, lr=1e-2)
    trainer = Trainer(params, checkpoint, mesh)
    embedded, found = [], []
    for step in range(1, STEPS + 1):
        batch = make_batch(8, seed=step)
        with torch.no_grad():
            features = trainer.model.encode_tiles(batch.tiles)
            width = features.shape[-1]
            rows = features.reshape(-1, width).split((batch.tiles_per_row * 4).tolist())
            padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            embedded.append(trainer.model.embed(batch.input_ids, batch.visual_index, padded))
        result = trainer.step(step, batch)
        found.append((result.loss, result.gradient_norm))
    expected = plain_lora(tmp_path, embedded, params)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def trained(directory, grid, **changes):
    """Loss and gradient norm of some steps with an adapter; the checkpoint is in ``trained``."""
    checkpoint = make_checkpoint(directory, "qwen2", grid)
    changes = {"lora": LORA, "lr": 1e-2} | changes
    launch(write_losses, grid.processes, checkpoint, grid, BOTH, directory, STEPS, changes)
    return torch.load(directory / "history.pt")


def matrices_in(checkpoint):
    return {
        (layer, name): matrix
        for layer in range(4)
        for name, matrix in read_tensors(checkpoint / adapter_path(layer)).items()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    return trained(directory, ALONE), matrices_in(directory / "trained")


@pytest.mark.parametrize("name", GRIDS)
def test_curves_and_matrices_equal_one_process(name, alone, tmp_path):
    grid, changes = GRIDS[name]
    history = trained(tmp_path, grid, **changes)
    torch.testing.assert_close(history, alone[0], atol=1e-5, rtol=1e-5)
    assert history[-1, 0] < history[0, 0]
    found = matrices_in(tmp_path / "trained")
    assert found.keys() == alone[1].keys() and len(found) == 2 * 7 * 4
    for key, matrix in found.items():
        assert matrix.abs().max() > 1e-3
        torch.testing.assert_close(matrix, alone[1][key], atol=1e-4, rtol=1e-4)


def test_a_bf16_run_follows_one_in_fp32(alone, tmp_path):
    """Frozen weights in bf16, masters of the matrices in fp32: the curve is that of fp32 nearly."""
    history = trained(tmp_path, GridParams(tensor=2, shard=2), dtype="bfloat16")
    torch.testing.assert_close(history[:, 0], alone[0][:, 0], atol=0.03, rtol=0)


def test_only_the_projector_and_the_adapter_are_new_files(tmp_path):
    trained(tmp_path, GridParams(tensor=2))
    source, out = tmp_path / "combined", tmp_path / "trained"
    before, after = read_manifest(source), read_manifest(out)
    assert before.adapter is None and after.adapter == LORA.adapter
    assert '"adapter"' not in (source / "checkpoint.json").read_text()
    for name in before.files:
        is_new = "vision_projection" in name
        assert (source / name).samefile(out / name) == (not is_new)
        assert (before.files[name] == after.files[name]) == (not is_new)
    assert after.files.keys() - before.files.keys() == {adapter_path(layer) for layer in range(4)}


def test_first_matrices_are_drawn_as_peft_draws_them_whatever_the_grid():
    architecture = QWEN2_72B
    first = fresh_matrices(architecture, LORA.adapter, 0, seed=1)
    again = fresh_matrices(architecture, LORA.adapter, 0, seed=1)
    for name, matrix in first.items():
        assert torch.equal(matrix, again[name])
        if name.endswith("lora_B"):
            assert not matrix.any()
        else:  # kaiming_uniform with a = sqrt(5): up to 1 / sqrt(inputs)
            bound = 1 / math.sqrt(matrix.shape[1])
            assert 0.95 * bound < matrix.abs().max() <= bound
            assert matrix.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    other = fresh_matrices(architecture, LORA.adapter, 1, seed=1)["mlp.up_proj.lora_A"]
    assert not torch.equal(first["mlp.up_proj.lora_A"], other)
    assert not torch.equal(first["mlp.up_proj.lora_A"], first["mlp.gate_proj.lora_A"])


def test_dropout_is_of_the_adapter_alone_and_the_same_at_every_run(tmp_path, mesh):
    checkpoint = make_checkpoint(tmp_path, "qwen2", ALONE)

    def losses(dropout, **changes):
        lora = replace(LORA, dropout=dropout)
        params = replace(train_params(ALONE, BOTH, 20), lora=lora, lr=1e-2, **changes)
        trainer = Trainer(params, checkpoint, mesh)
        return [trainer.step(n, make_batch(8, seed=n)).loss for n in range(1, 5)]

    plain, dropped = losses(0.0), losses(0.5)
    assert dropped[0] == plain[0]  # B is zero
    assert dropped[1:] != pytest.approx(plain[1:], abs=1e-4)
    assert losses(0.5, recompute_every=1) == dropped


def run(directory, data, until):
    """Worker: train in ``directory``; stop after step ``until`` as by a SIGTERM."""
    os.chdir(directory)
    step = Trainer.step

    def step_until(self, number, batch, *, stop=False):
        return step(self, number, batch, stop=stop or number == until)

    Trainer.step = step_until  # type: ignore[method-assign]
    params = replace(params_of(GridParams(tensor=2)), lora=replace(LORA, dropout=0.1))
    with parallel_mesh(params.grid) as mesh:
        train(
            params,
            checkpoint=directory / "combined",
            data=data,
            out=directory / "out",
            curves=Curves(directory / "loss.csv"),
            logs=Logs(directory / "logs", "loss", tensorboard=False),
            mesh=mesh,
        )


def test_a_stopped_run_ends_with_the_same_bytes(byte_tokenizer, datasets, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for directory in (whole, stopped):
        grid = GridParams(tensor=2)
        make_checkpoint(directory, "qwen2", grid, vocabulary=258, tokenizer=byte_tokenizer)
    launch(run, 2, whole, datasets, 0)
    with pytest.raises(UserError, match="stopped by SIGTERM after step 5"):
        launch(run, 2, stopped, datasets, 5)
    launch(run, 2, stopped, datasets, 0)
    assert content(stopped) == content(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"sft\.lora\.rank: 0 should be 1 or more"),
        ({"alpha": 0}, r"sft\.lora\.alpha: 0.0 should be more than 0"),
        ({"dropout": 1}, r"sft\.lora\.dropout: 1.0 should be from 0 up to 1"),
        ({"targets": []}, r"sft\.lora\.targets: \[\] should name some of \['q_proj'"),
        ({"targets": ["lm_head"]}, r"targets: \['lm_head'\] should name some of .*down_proj"),
        ({"targets": ["q_proj", "q_proj"]}, r"targets: .* each once"),
        ({"ranks": 3}, r"sft\.lora\.ranks"),
    ],
)
def test_errors_name_the_key(changes, message):
    values = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj"]} | changes
    with pytest.raises(UserError, match=message):
        parse_params(values, LoraParams, "sft.lora")


@pytest.mark.parametrize("scale", ["smoke", "full"])
def test_the_readmes_override_is_a_parameter(scale):
    text = Path("README.md").read_text().split("dvc exp run -S 'train.sft_34b.lora=")[1]
    override = "train.sft_34b.lora=" + text.split("'")[0]
    values = OmegaConf.create(composed([f"scale={scale}", override])).train
    lora = parse_params(values.sft_34b, TrainParams, "train.sft_34b").lora
    assert lora == LoraParams(rank=16, alpha=32.0, dropout=0.0, targets=["q_proj", "v_proj"])
    for section in values:
        other = parse_params(values[section], TrainParams, section)
        assert (other.lora is not None) == (section == "sft_34b")


def test_an_adapter_of_a_frozen_decoder_is_refused():
    with pytest.raises(ValueError, match=r"lora: should be null where trainable .* leaves out"):
        replace(train_params(ALONE, ["vision_projection"], 20), lora=LORA)
