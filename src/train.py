"""Tasks 7 and 8: pretrain the projector, or fine-tune projector and language model.

Run with: python src/train.py --params train.pretrain_34b --checkpoint checkpoints/34b/combined \
    --data data/pretrain --out checkpoints/34b/pretrained --plot plots/34b/pretrain.csv
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nvlm.checkpoint.format.manifest import MANIFEST
from nvlm.data.loading.blend import find_blend
from nvlm.errors import run_command
from nvlm.launch.failure import told_once
from nvlm.launch.stage import LaunchParams, launch_stage
from nvlm.parallel.mesh import parallel_mesh
from nvlm.params import load_params
from nvlm.train.checks import check_run
from nvlm.train.curves import Curves
from nvlm.train.params import TrainParams
from nvlm.train.runs import find_snapshots, identify, steps_in, unlike
from nvlm.train.telemetry.logs import Logs


def main() -> None:
    """Start one process a rank of the grid that the parameters ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", required=True, help="section of params.yaml")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint to start from")
    parser.add_argument("--data", type=Path, required=True, help="directory of the datasets")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--plot", type=Path, required=True, help="curves to write (CSV)")
    arguments = parser.parse_args()

    params = load_params(arguments.params, TrainParams)
    check_run(params, arguments.checkpoint)
    blend = find_blend(arguments.data, params.data.blend)
    run = identify(params, arguments.checkpoint, arguments.data, arguments.out)
    find_snapshots(run)
    for note in unlike(run):
        print(f"note: {note}", file=sys.stderr)
    launch_stage(
        load_params("launch", LaunchParams),
        work,
        params.grid.processes,
        params,
        arguments,
        name=arguments.params.removeprefix("train."),
        inputs=[arguments.checkpoint / MANIFEST, *blend.indexes.values()],
        imports="nvlm.train.loop",
        progress=lambda: max(steps_in(run.directory), default=0),
    )


def work(params: TrainParams, arguments: argparse.Namespace) -> None:
    """One rank: train its part of the model."""
    from nvlm.train.loop import train  # takes seconds to import: transformers

    plot: Path = arguments.plot
    with parallel_mesh(params.grid) as mesh:
        directory = Path("logs") / plot.parent.name
        logs = Logs(directory, plot.stem, tensorboard=params.tensorboard and mesh.is_main)
        train(
            params,
            checkpoint=arguments.checkpoint,
            data=arguments.data,
            out=arguments.out,
            curves=Curves(plot),
            logs=logs,
            mesh=mesh,
        )


if __name__ == "__main__":
    run_command(told_once(main))
