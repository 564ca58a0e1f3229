"""What a person reads of a run: which samples were not read whole."""

from types import SimpleNamespace

import pytest
from tests.parallel.grids import make_batch, train_params

from nvlm.data.loading.shortfall import Shortfall
from nvlm.parallel.grid import GridParams
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
