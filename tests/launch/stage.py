"""A stage whose two ranks add up a number each, for tests of how ranks start.

Run with: python tests/launch/stage.py OUT [HOW]

HOW: the rank that fails, "all", "early" (rank 1 fails before the ranks meet), or "sleep".
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from nvlm.errors import UserError, run_command
from nvlm.launch.failure import told_once
from nvlm.launch.stage import LaunchParams, launch_stage
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.params import load_params


def main() -> None:
    out, how = sys.argv[1], "".join(sys.argv[2:])
    params = load_params("launch", LaunchParams)
    inputs = [Path("input")]
    launch_stage(
        params,
        work,
        2,
        Path(out),
        how,
        name="stage",
        inputs=inputs,
        imports="nvlm.parallel.mesh",
        progress=lambda: 0,
    )


def work(out: Path, how: str) -> None:
    rank = os.environ["RANK"]
    out.mkdir(exist_ok=True)
    if how == "sleep":
        (out / rank).write_text(str(os.getpid()))
        time.sleep(300)
    if (how, rank) == ("early", "1"):
        raise UserError("the soup is cold: heat it")
    with parallel_mesh(GridParams(tensor=2)) as mesh:
        if how in ("all", rank):
            raise UserError("the soup is cold: heat it")
        total = torch.tensor(1.0 + dist.get_rank())
        dist.all_reduce(total)
        (out / rank).write_text(
            f"{total} of local rank {os.environ['LOCAL_RANK']} on {mesh.device}"
        )


if __name__ == "__main__":
    run_command(told_once(main))
