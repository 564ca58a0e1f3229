"""How often FSDP2 gathers, counted on a process group in which nobody else is."""

from dataclasses import replace

import pytest
import torch
from tests.parallel.grids import make_batch, train_params
from tests.train.planning.test_plan import DECODER, TOWER
from torch.utils._python_dispatch import TorchDispatchMode

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.model.language import Stage
from nvlm.model.nvlm import NVLM
from nvlm.parallel.data import apply_data_parallel
from nvlm.parallel.grid import GridParams
from nvlm.parallel.pipeline import StepRunner
from nvlm.train.planning.plan import rehearsal

LAYERS, MICRO_BATCHES = 2, 4
UNITS = LAYERS + 4  # layers, embedding, head, projector, and the root's last norm


class Gathers(TorchDispatchMode):
    """Counts all-gathers."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function).startswith("c10d._allgather_base_")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("keep_gathered", "gathers"), [(True, UNITS), (False, None)])
def test_parameters_are_gathered_once_a_step(keep_gathered, gathers):
    grid = GridParams(tensor=1, shard=2)
    params = replace(train_params(grid, ["vision_projection", "language_model"], 5), micro_batch=2)
    language = replace(DECODER, layers=LAYERS)
    with rehearsal(grid) as mesh:
        here = replace(mesh, device=torch.device("cpu"))
        stage = Stage(first=0, last=LAYERS)
        model = NVLM(Architecture(vision=TOWER, language=language), 104, stage)
        model.vision_model.requires_grad_(False)
        apply_data_parallel(model, here, torch.float32, keep_gathered=keep_gathered)
        runner = StepRunner(
            model,
            here,
            micro_batch=params.micro_batch,
            tile_chunk=8,
            turn_weighting="token",
            packed=True,
            keep_gathered=keep_gathered,
            compute=torch.float32,
        )
        batch = make_batch(params.micro_batch * MICRO_BATCHES, seed=1)
        with Gathers() as counted:
            runner.run(batch, 1.0)
    if gathers is None:
        assert counted.count > MICRO_BATCHES * LAYERS * 2 - LAYERS
    else:
        assert counted.count == gathers
