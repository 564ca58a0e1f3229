"""What a person reads of a run: which samples were not read whole."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.parallel.grids import make_batch, train_params

from nvlm.data.loading.blend import Blend
from nvlm.data.loading.shortfall import Shortfall
from nvlm.parallel.grid import GridParams
from nvlm.train.runs import identify
from nvlm.train.telemetry import observer as module
from nvlm.train.telemetry.logs import Logs
from nvlm.train.trainer import StepResult

RESULT = StepResult(loss=1.0, learning_rate=1e-3, gradient_norm=1.0, stop=False)


@pytest.fixture
def observer(monkeypatch, tmp_path):
    """Rank 0's, whose measurements are none."""
    monkeypatch.setattr(module, "measurements", lambda *_: {})
    monkeypatch.setattr(module, "line", lambda step, *_: f"step {step}")
    params = train_params(GridParams(tensor=1), ["vision_projection"], steps=4)
    mesh = SimpleNamespace(is_main=True, grid=SimpleNamespace(data=2))
    trainer = SimpleNamespace(mesh=mesh)
    return module.Observer(params, trainer, None, Logs(tmp_path, "sft", tensorboard=False))


def test_shortfalls_are_summed_over_steps_and_told_at_first_and_at_last(observer, capsys):
    told = []
    for step in range(1, 5):
        batch = make_batch(2, seed=step)
        if step > 1:
            batch.shortfalls.append(Shortfall(key="a/1", kind="fewer tiles", tokens=20 + step))
        observer.after(step, RESULT, batch, seconds=1.0, waited=0.0)
        told.append(capsys.readouterr().err.splitlines())
    assert told[0] == ["step 1"]
    assert told[2] == ["step 3"]
    assert told[1][1].startswith("note: 1 of 8 samples lost tiles, 0 were left out")
    assert told[3][1].startswith("note: 3 of 16 samples lost tiles")
    assert "data.sequence_length 24 in place of 24" in told[3][1]
    assert told[3][1].endswith("(what the first of 2 data ranks read)")


def test_what_is_missing_of_the_blend_is_told_at_the_start(observer, capsys):
    there = Blend(root=Path("sft"), weights={"a": 1.0}, missing={}, missing_share=0)
    observer.start(there)
    assert capsys.readouterr().err == ""
    observer.start(replace(there, missing={"b": "gone"}, missing_share=0.5))
    assert capsys.readouterr().err == (
        "note: 1 of 2 datasets of the blend, 50.0% of its weight, are missing (b: gone)\n"
    )


def test_a_dataset_that_arrives_later_makes_it_another_run(tmp_path):
    """Its snapshots are of a stream without that dataset."""
    (tmp_path / "checkpoint.json").write_text("{}")
    for name, file in (("a", ".nv-meta/index.uuid"), ("b", "missing.json")):
        path = tmp_path / name / file
        path.parent.mkdir(parents=True)
        path.write_text('{"reason": "gone"}')
    params = train_params(GridParams(tensor=1), ["vision_projection"], steps=4)
    params = replace(params, data=replace(params.data, blend={"a": 1.0, "b": 1.0}))
    before = identify(params, tmp_path, tmp_path, tmp_path / "out")
    (tmp_path / "b" / ".nv-meta").mkdir()
    (tmp_path / "b" / ".nv-meta" / "index.uuid").write_text("1")
    after = identify(params, tmp_path, tmp_path, tmp_path / "out")
    assert before.directory != after.directory
