"""A stage whose two ranks add up a number each, for tests of how ranks start.

Run with: python tests/parallel/stage.py OUT [RANK that fails, or "all"]
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from nvlm.errors import UserError, run_command
from nvlm.parallel.launch import LaunchParams, launch_stage
from nvlm.parallel.mesh import GridParams, parallel_mesh
from nvlm.parallel.telling import told_once
from nvlm.params import load_params


def main() -> None:
    out, failing = sys.argv[1], sys.argv[2:]
    params = load_params("launch", LaunchParams)
    inputs = [Path("input")]
    launch_stage(params, work, 2, Path(out), failing, name="stage", inputs=inputs)


def work(out: Path, failing: list[str]) -> None:
    rank = os.environ["RANK"]
    with parallel_mesh(GridParams(tensor=2)) as mesh:
        if failing in (["all"], [rank]):
            raise UserError("the soup is cold: heat it")
        total = torch.tensor(1.0 + dist.get_rank())
        dist.all_reduce(total)
        out.mkdir(exist_ok=True)
        (out / rank).write_text(
            f"{total} of local rank {os.environ['LOCAL_RANK']} on {mesh.device}"
        )


if __name__ == "__main__":
    run_command(told_once(main))
