"""Every grid computes the same model: transformers' logits, one process's loss curves."""

import pytest
import torch
from tests.checkpoint.models import save_vision
from tests.parallel.grids import (
    VOCABULARY,
    make_batch,
    make_checkpoint,
    write_first_loss,
    write_logits,
    write_losses,
)
from transformers import AutoModelForCausalLM
from transformers.models.internvl.modeling_internvl import InternVLModel

from nvlm.checkpoint.format.files import read_part
from nvlm.launch.local import launch
from nvlm.parallel.grid import GridParams

GRIDS = {
    "TP=2": GridParams(tensor=2),
    "PP=2": GridParams(tensor=1, pipeline=2),
    "TP=2 x PP=2": GridParams(tensor=2, pipeline=2),
    "DP=2": GridParams(tensor=1, shard=2),
    "DP=2 x TP=2": GridParams(tensor=2, shard=2),
    "replicate 2 x shard 2": GridParams(tensor=1, replicate=2, shard=2),
}


def transformers_logits(directory):
    """The same model put together from transformers' classes, sample by sample, unpacked."""
    batch = make_batch(6, seed=7)
    tower = save_vision(directory / "tower_again")
    decoder = AutoModelForCausalLM.from_pretrained(directory / "hf_language").eval()
    projector = read_part(directory / "combined", 0, "vision_projection")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    logits = torch.zeros(*batch.input_ids.shape, VOCABULARY)
    with torch.no_grad():
        hidden = tower((batch.tiles / 255 - mean) / std).last_hidden_state[:, 1:]
        grid = hidden.view(-1, 4, 4, hidden.shape[-1])
        visual = InternVLModel.pixel_shuffle(None, grid, scale_factor=0.5)
        visual = visual.flatten(1, 2)
        normed = torch.nn.functional.layer_norm(
            visual,
            visual.shape[-1:],
            projector["encoder.linear_fc1.layer_norm_weight"],
            projector["encoder.linear_fc1.layer_norm_bias"],
        )
        inner = torch.nn.functional.gelu(normed @ projector["encoder.linear_fc1.weight"].T)
        visual = inner @ projector["encoder.linear_fc2.weight"].T
        start = 0
        for row, tiles in enumerate(batch.tiles_per_row.tolist()):
            own = visual[start : start + tiles].flatten(0, 1)
            start += tiles
            embeds = decoder.get_input_embeddings()(batch.input_ids[row])
            embeds[1 : 1 + len(own)] = own
            for sample in (slice(0, 14), slice(14, 21)):
                logits[row, sample] = decoder(inputs_embeds=embeds[None, sample]).logits[0]
    return batch, logits


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_logits_equal_transformers_on_every_grid(family, tmp_path):
    for name, grid in {
        "one process": GridParams(tensor=1),
        "TP=2": GRIDS["TP=2"],
        "TP=2 x PP=2": GRIDS["TP=2 x PP=2"],
    }.items():
        directory = tmp_path / name
        checkpoint = make_checkpoint(directory, family, grid)
        launch(write_logits, grid.processes, checkpoint, grid, directory / "logits.pt")
        logits = torch.load(directory / "logits.pt")
        if name == "one process":
            batch, expected = transformers_logits(directory)
        counted = batch.segment_ids > 0
        torch.testing.assert_close(logits[counted], expected[counted], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The loss curve of one process, for the tests of other grids."""
    histories = {}

    def run(family, trainable):
        key = (family, *trainable)
        if key not in histories:
            directory = tmp_path_factory.mktemp("alone")
            grid = GridParams(tensor=1)
            checkpoint = make_checkpoint(directory, family, grid)
            launch(write_losses, 1, checkpoint, grid, trainable, directory)
            histories[key] = torch.load(directory / "history.pt")
        return histories[key]

    return run


@pytest.mark.parametrize("name", GRIDS)
def test_fine_tuning_curves_equal_one_process(name, alone, tmp_path):
    trainable = ["vision_projection", "language_model"]
    expected = alone("qwen2", trainable)
    grid = GRIDS[name]
    checkpoint = make_checkpoint(tmp_path, "qwen2", grid)
    launch(write_losses, grid.processes, checkpoint, grid, trainable, tmp_path)
    history = torch.load(tmp_path / "history.pt")
    torch.testing.assert_close(history, expected, atol=1e-5, rtol=1e-5)
    assert history[-1, 0] < history[0, 0]


def losses(directory, grid, steps, **changes):
    """(loss, gradient norm) of ``steps`` steps that train everything."""
    checkpoint = make_checkpoint(directory, "qwen2", grid)
    both = ["vision_projection", "language_model"]
    launch(write_losses, grid.processes, checkpoint, grid, both, directory, steps, changes)
    return torch.load(directory / "history.pt")


def test_whole_sequences_on_every_tensor_rank_give_the_same_curve(alone, tmp_path):
    """Other tests split them: sequence parallelism can be left out."""
    history = losses(tmp_path, GRIDS["TP=2"], 20, sequence_parallel=False)
    expected = alone("qwen2", ["vision_projection", "language_model"])
    torch.testing.assert_close(history, expected, atol=1e-5, rtol=1e-5)


def test_the_full_scales_combination_equals_one_process(tmp_path):
    """Every kind of parallelism at once, bf16, recomputation, several micro-batches, parameters
    that stay gathered: eight ranks against one that does the same samples."""
    full = {"dtype": "bfloat16", "micro_batch": 2, "recompute_every": 1, "keep_gathered": True}
    grid = GridParams(tensor=2, pipeline=2, shard=2)
    eight = losses(tmp_path / "eight", grid, 6, **full)
    one = losses(tmp_path / "one", GridParams(tensor=1), 6, **full)
    torch.testing.assert_close(eight, one, atol=0.02, rtol=0.02)
    assert one[-1, 0] < one[0, 0]


def test_compiled_layers_run_again_on_tensor_ranks(tmp_path):
    """transformers' own checkpointing lies within what is compiled, and fails there: the mesh of a
    DTensor would be saved for the backward pass."""
    plain = losses(tmp_path / "plain", GRIDS["TP=2"], 3)
    both = losses(tmp_path / "both", GRIDS["TP=2"], 3, compile=True, recompute_every=1)
    torch.testing.assert_close(both, plain, atol=1e-5, rtol=1e-5)


def test_pretraining_curve_equals_one_process_and_freezes_the_rest(alone, tmp_path):
    grid = GRIDS["TP=2"]
    checkpoint = make_checkpoint(tmp_path, "llama", grid)
    launch(write_losses, 2, checkpoint, grid, ["vision_projection"], tmp_path)
    history = torch.load(tmp_path / "history.pt")
    torch.testing.assert_close(history, alone("llama", ["vision_projection"]), atol=1e-5, rtol=1e-5)
    for path in sorted((tmp_path / "trained").rglob("*.safetensors")):
        original = checkpoint / path.relative_to(tmp_path / "trained")
        same_file = path.stat().st_ino == original.stat().st_ino
        assert same_file == ("vision_projection" not in path.name), path


def test_stages_hand_on_what_they_compute_in(tmp_path):
    """bf16 under fp32 masters: a stage that expects the masters' type would read garbage."""
    losses = {}
    for name, grid, dtype in (
        ("fp32", GridParams(tensor=1), "float32"),
        ("bf16", GridParams(tensor=1), "bfloat16"),
        ("bf16 PP=2", GridParams(tensor=1, pipeline=2), "bfloat16"),
    ):
        checkpoint = make_checkpoint(tmp_path / name, "qwen2", grid)
        out = tmp_path / name / "loss"
        launch(write_first_loss, grid.processes, checkpoint, grid, dtype, out)
        losses[name] = float(out.read_text())
    assert losses["bf16 PP=2"] == pytest.approx(losses["bf16"], abs=1e-3)
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.02)
