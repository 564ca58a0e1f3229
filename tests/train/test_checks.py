"""A run that cannot be is refused in one sentence, before any rank starts."""

import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from tests.checkpoint.build import with_adapter
from tests.parallel.grids import make_checkpoint, train_params

import train
from nvlm.checkpoint.format.adapter import Adapter
from nvlm.errors import UserError
from nvlm.parallel.grid import GridParams

GRID = GridParams(tensor=2)
LAUNCH = {"kind": "local", "device": "cpu", "stop_seconds": 7}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), "qwen2", GRID)


@pytest.fixture
def start(checkpoint, tmp_path, monkeypatch):
    """Runs src/train.py with changed parameters; returns how many ranks it starts."""
    monkeypatch.chdir(tmp_path)
    for name in train_params(GRID, ["language_model"], 10).data.blend:
        index = tmp_path / "data" / name / ".nv-meta/index.uuid"
        index.parent.mkdir(parents=True)
        index.touch()
    started: list[int] = []
    monkeypatch.setattr(train, "launch_stage", lambda *given, **_: started.append(given[2]))
    arguments = f"--params train --checkpoint {checkpoint} --data data --out out --plot plot.csv"
    monkeypatch.setattr(sys, "argv", ["src/train.py", *arguments.split()])

    def start(grid: GridParams = GRID, **data: object) -> list[int]:
        base = train_params(GRID, ["vision_projection", "language_model"], 10)
        loader = {"sequence_length": 100, **data}
        content = asdict(replace(base, sequence_parallel=False)) | {
            "grid": asdict(grid),
            "data": asdict(base.data) | loader,
        }
        params = {"train": content, "launch": LAUNCH}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        started.clear()
        try:
            train.main()
        except UserError:
            assert not started
            raise
        return started

    return start


def test_a_run_that_can_be_starts_its_ranks(start):
    assert start() == [2]
    assert start(replace(GRID, replicate=2)) == [4]


@pytest.mark.parametrize("grid", [GridParams(tensor=1), GridParams(tensor=2, pipeline=2)])
def test_a_grid_that_is_not_the_checkpoints(grid, start):
    asked = f"grid asks for {grid.tensor} x {grid.pipeline}"
    with pytest.raises(UserError, match=f"combined is laid out for tensor 2 x pipeline 1.*{asked}"):
        start(grid)


def test_a_batch_that_the_data_ranks_do_not_divide(start):
    with pytest.raises(UserError, match="global_batch: 8 should be a multiple of micro_batch"):
        start(replace(GRID, shard=3))


def test_a_dataset_that_is_not_there(start):
    with pytest.raises(
        UserError, match=r"data\.blend\.moon: data holds no prepared dataset of that name"
    ):
        start(blend={"moon": 1.0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("steps", "global_batch", "micro_batch", "tile_chunk")),
        *((name, 0) for name in ("log_every", "snapshot_every", "clip_grad", "stop_above_norm")),
        ("clip_grad", math.nan),
        ("weight_decay", -0.1),
    ],
)
def test_numbers_that_mean_nothing(name, value):
    base = train_params(GRID, ["vision_projection"], 10)
    with pytest.raises(ValueError, match=rf"^{name}: {value} should be "):
        replace(base, **{name: value})


def test_half_a_model(start, checkpoint, monkeypatch):
    half = checkpoint.with_name("language")
    arguments = [str(half) if word == str(checkpoint) else word for word in sys.argv]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UserError, match="language is half a model: combine it first"):
        start()


def test_an_adapter_that_is_not_folded_in(start, checkpoint, tmp_path, monkeypatch):
    adapted = tmp_path / "adapted"
    with_adapter(checkpoint, adapted, Adapter(rank=2, alpha=4.0, targets=("q_proj",)))
    arguments = [str(adapted) if word == str(checkpoint) else word for word in sys.argv]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(
        UserError, match=r"adapted has an adapter .*nvlm\.checkpoint merge .*adapted"
    ):
        start()


def test_a_damaged_checkpoint(start, tmp_path, checkpoint, monkeypatch):
    arguments = [str(tmp_path) if word == str(checkpoint) else word for word in sys.argv]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UserError, match="is not a checkpoint"):
        start()


# The small model's tiles have 4 tokens: six and the thumbnail, with a tag each, are 7 x 5.
@pytest.mark.parametrize(
    ("data", "needed"),
    [
        ({}, 35),
        ({"tile_tags": False}, 28),
        ({"thumbnail": False}, 30),
        ({"max_tiles": 1, "tile_tags": False}, 4),  # one tile is the whole image
    ],
)
def test_a_sequence_that_cannot_hold_the_tiles_of_one_image(data, needed, start):
    assert start(**data, sequence_length=needed) == [2]
    with pytest.raises(
        UserError, match=rf"data\.sequence_length: {needed - 1} tokens.*more than {needed},"
    ):
        start(**data, sequence_length=needed - 1)


def test_checks_import_no_torch():
    code = "import sys, nvlm.train.checks; assert not {'torch', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, check=True)
