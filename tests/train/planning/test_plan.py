"""Planned memory against a real run's, autograd's own storage, and the published sizes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.parallel.grids import make_batch, make_checkpoint, share, train_params
from torch.distributed.tensor import DTensor

from nvlm.checkpoint.format.adapter import TARGETS
from nvlm.checkpoint.format.architecture import Architecture, LanguageArchitecture
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.format.published import INTERNVIT_6B, PUBLISHED, QWEN2_72B
from nvlm.checkpoint.parts.adapter import adapter_shapes
from nvlm.errors import UserError
from nvlm.launch.local import launch
from nvlm.model.attention import packed_mask
from nvlm.model.language import Stage
from nvlm.model.lora import add_adapter
from nvlm.model.nvlm import NVLM
from nvlm.model.vision import Projector
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.tensor import apply_tensor_parallel
from nvlm.params import composed
from nvlm.train.__main__ import main
from nvlm.train.lora import LoraParams
from nvlm.train.params import TrainParams
from nvlm.train.planning.memory import layer_activations, projector_activations
from nvlm.train.planning.plan import plan_run, rehearsal
from nvlm.train.trainer import Trainer

BOTH = ["vision_projection", "language_model"]
LORA = LoraParams(rank=4, alpha=8.0, dropout=0.0, targets=list(TARGETS))
SOME = LoraParams(rank=4, alpha=8.0, dropout=0.0, targets=["o_proj", "gate_proj"])
RUNS = {
    "TP=2 x PP=2": (GridParams(tensor=2, pipeline=2), "float32", BOTH, None),
    "DP=2 in bf16": (GridParams(tensor=1, shard=2), "bfloat16", BOTH, None),
    "pretraining, TP=2 in bf16": (GridParams(tensor=2), "bfloat16", ["vision_projection"], None),
    "adapter, TP=2 x PP=2": (GridParams(tensor=2, pipeline=2), "float32", BOTH, LORA),
    "adapter, DP=2 x TP=2 in bf16": (GridParams(tensor=2, shard=2), "bfloat16", BOTH, LORA),
}


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def size(tensors) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


def write_sizes(checkpoint: Path, params: TrainParams, out: Path) -> None:
    """Worker: what this rank holds at the end of a step's backward pass and of the step."""
    with parallel_mesh(params.grid) as mesh:
        trainer = Trainer(params, checkpoint, mesh)
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        sizes = {
            "parameters": size(trained),
            "frozen": size(p for p in trainer.model.parameters() if not p.requires_grad),
        }
        step = trainer.optimizer.step

        def measured(*arguments, **options):
            sizes["gradients"] = size(p.grad for p in trained if p.grad is not None)
            return step(*arguments, **options)

        trainer.optimizer.step = measured  # type: ignore[method-assign]
        trainer.step(1, share(make_batch(8, seed=1), mesh.data_rank, params.grid.data))
        moments = [v for state in trainer.optimizer.state.values() for v in state.values()]
        sizes["optimizer"] = size(moments)
        rank = f"{mesh.pipeline_rank}-{mesh.data_rank}-{mesh.tensor_rank}.json"
        (out / rank).write_text(json.dumps(sizes))


@pytest.mark.parametrize("name", RUNS)
def test_the_model_takes_what_every_rank_of_a_real_run_takes(name, tmp_path):
    grid, dtype, trainable, lora = RUNS[name]
    checkpoint = make_checkpoint(tmp_path, "qwen2", grid)
    base = train_params(grid, trainable, 5)
    params = replace(base, dtype=dtype, data=replace(base.data, max_tiles=2), lora=lora)
    launch(write_sizes, grid.processes, checkpoint, params, tmp_path)
    manifest = read_manifest(checkpoint)
    plan = plan_run(params, manifest.architecture, manifest.vocabulary.padded)
    found = sorted(tmp_path.glob("*-*.json"))
    assert len(found) == grid.processes
    for path in found:
        stage = plan.stages[int(path.name[0])]
        for field, bytes_held in json.loads(path.read_text()).items():
            assert getattr(stage, field) == bytes_held, (path.name, field)


def kept_by_autograd(module, hidden, shared=(), **options) -> int:
    """Bytes that ``module`` keeps for its backward pass, without parameters and what is shared."""
    known = {local(t).untyped_storage().data_ptr() for t in (*module.parameters(), *shared)}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = local(tensor).untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(hidden, **options)
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


DECODER = LanguageArchitecture(
    family="qwen2",
    hidden_size=64,
    layers=1,
    heads=8,
    query_groups=4,
    ffn_hidden_size=192,
    norm_epsilon=1e-6,
    rope_theta=1e6,
    vocabulary=101,
    max_positions=256,
)


TOWER = replace(INTERNVIT_6B, hidden_size=24, heads=3, layers=1, image_size=24, patch_size=6)


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("trainable", "lora"),
    [(BOTH, None), (["vision_projection"], None), (BOTH, LORA), (BOTH, SOME)],
)
@pytest.mark.parametrize("split", [False, True])
def test_a_layers_activations_are_what_autograd_keeps(split, tensor, dtype, trainable, lora):
    """On a rank of a group whose others are not there: its sums are wrong, not their sizes."""
    grid, length, rows = GridParams(tensor=tensor), 128, 2
    base = train_params(grid, trainable, 5)
    data = replace(base.data, sequence_length=length)
    options = {"micro_batch": rows, "sequence_parallel": split, "lora": lora}
    params = replace(base, dtype=dtype, data=data, **options)
    compute = getattr(torch, dtype)
    with rehearsal(grid) as mesh:
        model = NVLM(Architecture(vision=TOWER, language=DECODER), 104, Stage(first=0, last=1))
        model.to(compute).train()
        apply_tensor_parallel(model, mesh.tensor)
        if model.split is not None:
            model.split.active = split
        decoder = model.language_model.requires_grad_("language_model" in params.trained)
        if lora is not None:
            whole = {
                name: torch.randn(shape, dtype=compute)
                for name, shape in adapter_shapes(DECODER, lora.adapter).items()
            }
            add_adapter(model, mesh.tensor, lora.adapter, lambda _: whole)
        here = length // tensor if split else length
        hidden = torch.randn(rows, here, 64, dtype=compute, requires_grad=True)
        angles = decoder.model.rotary_emb(hidden, torch.arange(length)[None])
        # On a GPU half precision needs no mask (and SDPA does not repeat the keys then).
        packed = packed_mask(torch.ones(rows, length, dtype=torch.long), compute)
        mask = packed if dtype == "float32" else None
        kept = kept_by_autograd(
            decoder.model.layers[0],
            hidden,
            shared=angles if mask is None else (mask, *angles),  # by all layers
            attention_mask=mask,
            position_embeddings=angles,
        )
    assert layer_activations(DECODER, params) == kept


def test_the_projectors_activations_are_what_autograd_keeps():
    architecture = Architecture(vision=TOWER, language=DECODER)
    params = train_params(GridParams(tensor=1), BOTH, 5)
    features = torch.randn(params.micro_batch, 3 * 4, 96)
    kept = kept_by_autograd(Projector(architecture), features)
    statistics = 2 * 4 * params.micro_batch * 12  # mean and deviation of LayerNorm, a token each
    assert projector_activations(architecture, params, 3) == kept - features.nbytes - statistics


def full_params(grid: GridParams, **changes) -> TrainParams:
    base = train_params(GridParams(tensor=1), BOTH, 5)
    data = replace(base.data, sequence_length=3200, packing=False)
    full = {"dtype": "bfloat16", "micro_batch": 1, "recompute_every": 1}
    return replace(base, data=data, grid=grid, **full | changes)


def test_the_published_72b_on_one_rank_has_the_published_sizes():
    plan = plan_run(full_params(GridParams(tensor=1)), PUBLISHED["72b"], QWEN2_72B.vocabulary)
    projector = 2 * 12800 + 12800 * 29568 + 29568 * 8192
    (memory,) = plan.stages
    assert memory.parameters == memory.gradients == 4 * (72_706_203_648 + projector)
    assert memory.frozen == 2 * 5_536_496_000
    assert plan.tiles == 7
    assert not plan.fits(80)


def test_a_stage_keeps_as_many_micro_batches_as_there_are_stages_after_it():
    grid = GridParams(tensor=8, pipeline=4, shard=4)
    many, single = (
        plan_run(full_params(grid, global_batch=rows), PUBLISHED["72b"], 152576).stages
        for rows in (128, 4)
    )
    hidden = 2 * 8192 * 3200  # of one micro-batch
    # The second stage: input of each layer and output of every micro-batch under way; and room to
    # receive each micro-batch and its gradient into.
    more = many[1].activations - single[1].activations
    assert more == 2 * 21 * hidden + 2 * hidden * (32 - 1)
    split = full_params(grid, global_batch=128, sequence_parallel=True)
    shared = plan_run(split, PUBLISHED["72b"], 152576).stages
    assert shared[1].activations < many[1].activations / 3
    kept = full_params(grid, global_batch=128, recompute_every=0)
    stages = plan_run(kept, PUBLISHED["72b"], 152576).stages
    assert [memory.peak for memory in stages] > [memory.peak for memory in many]


def test_an_image_that_fits_no_row_is_refused():
    params = full_params(GridParams(tensor=1))
    short = replace(params, data=replace(params.data, sequence_length=512))
    with pytest.raises(
        UserError, match=r"sequence_length: 512 tokens cannot hold .* \(7 of 256 tokens"
    ):
        plan_run(short, PUBLISHED["72b"], 152064)


@pytest.fixture
def plan(monkeypatch, capsys):
    def call(words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["nvlm.train", "plan", *words.split()])
        main()
        return capsys.readouterr().out

    return call


def test_the_command_counts_the_batch_and_says_which_grids_fit(plan):
    """On 8 cards, parameters and moments of a 72B alone are 109 GB each: no grid can fit."""
    text = plan("--params train.sft_72b --gpus 8 train.sft_72b.global_batch=64")
    counted = "64 rows = 4 data ranks x 16 micro-batches x 1; 204,800 tokens, at most 448 tiles"
    assert counted in text
    assert "\nfits 80 GiB" in text  # the recipe's own grid, of 128
    table = text.split("GPU-hours\n")[1].split("\n\n")[0].splitlines()
    assert sorted(line.split()[:4] for line in table) == sorted(
        [str(tensor), str(pipeline), str(shard), str(64 // shard)]
        for tensor in (1, 2, 4, 8)
        for pipeline in (1, 2, 4, 8)
        if (shard := 8 // (tensor * pipeline))
    )
    assert all(line.endswith("  does not fit") for line in table)
    seconds = [float(line.split()[5]) for line in table]
    assert seconds == sorted(seconds)
    assert "snapshots: 880.1 GB each, 3 of them at once: 2,640 GB of disk" in text
    assert "evaluation of the 72b, expected: " in text
    adapted = text.split("low-rank adaptation, rank 16 on all layers, grids of 8 GPUs:\n")[1]
    fit = [line.split()[:4] for line in adapted.splitlines() if line.endswith("  fits")]
    assert ["8", "1", "1", "64"] in fit and ["1", "1", "8", "8"] not in fit


@pytest.mark.parametrize(("branch", "tensor"), [("34b", 4), ("72b", 8)])
def test_an_adapter_leaves_room_on_one_node(branch, tensor):
    """Frozen weights in bf16, split over the tensor ranks; masters and moments of what is added."""
    grid = GridParams(tensor=tensor)
    changes = {"recompute_every": 0, "sequence_parallel": True, "global_batch": 128}
    params = full_params(grid, lora=replace(LORA, rank=16), **changes)
    architecture = PUBLISHED[branch]
    language = architecture.language
    (memory,) = plan_run(params, architecture, language.vocabulary).stages
    hidden, ffn = language.hidden_size, language.ffn_hidden_size
    keys = language.query_groups * language.head_size
    # Of each of the seven: what is split with its layer, and what every rank has.
    split = hidden + 2 * keys + 2 * ffn + (hidden + ffn)
    shared = 5 * hidden + 2 * hidden
    adapter = 16 * language.layers * (split // tensor + shared)
    projector = 2 * 12800 + (12800 * ffn + ffn * hidden) // tensor
    assert memory.parameters == 4 * (adapter + projector)
    assert memory.optimizer == pytest.approx(2 * memory.parameters, rel=1e-5)
    total = {"34b": 34_388_917_248, "72b": 72_706_203_648}[branch]  # weights of the decoder
    assert memory.frozen == pytest.approx(2 * (total / tensor + 5_536_496_000), rel=1e-3)
    assert memory.peak < 0.8 * 80 * 2**30


def test_a_card_fits_what_it_holds_with_a_tenth_of_it_spare():
    plan = plan_run(full_params(GridParams(tensor=1)), PUBLISHED["72b"], 152064)
    assert plan.fits(plan.peak / 0.9 / 2**30 + 0.01)
    assert not plan.fits(plan.peak / 0.9 / 2**30 - 0.01)


def test_the_command_plans_a_checkpoint_by_params_yaml(plan, monkeypatch, tmp_path):
    parameters = composed([])
    grid = GridParams(tensor=2)
    make_checkpoint(tmp_path, "qwen2", grid)
    (tmp_path / "params.yaml").write_text(parameters)
    monkeypatch.chdir(tmp_path)
    text = plan("--params train.sft_34b --checkpoint combined")
    assert "grid: tensor 2 x pipeline 1" in text
    assert "4 decoder layers a stage" in text
    with pytest.raises(
        UserError, match=r"laid out for tensor 2 x pipeline 1, and grid asks for 2 x 2"
    ):
        plan("--params train.sft_72b --checkpoint combined")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--memory-gib 0", "--memory-gib should be more than 0"),
        ("--params train.sft_7b", "--params train.sft_7b: should be of train.pretrain_34b"),
        ("train.sft_72b.lrr=1", "lrr"),
        ("--params train.sft_72b train.sft_72b.grid.pipeline=3", "80 decoder layers"),
        (
            "--params train.sft_72b train.sft_72b.grid.shard=5",
            "should be a multiple of micro_batch",
        ),
        ("--params train.sft_34b --gpus 7", "no grid of 7 GPUs divides"),
        ("--card gtx", "--card gtx: should be one of a100, h100, h200, b200"),
        ("--rate speed=2", "--rate: Key 'speed' not in 'Rates'|speed"),
        ("--rate products=0", "--rate.products: 0.0 should be more than 0"),
        ("--checkpoint missing", "missing"),
    ],
)
def test_a_value_that_does_not_fit_is_named(plan, words, message):
    with pytest.raises(UserError, match=message):
        plan(words)
