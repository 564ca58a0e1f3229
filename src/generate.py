"""Task 9: answer the questions of one task with a checkpoint, on the grid it is laid out for.

Run with: python src/generate.py --params eval.generate --task TextVQA \
    --checkpoint checkpoints/72b/sft --data data/eval/TextVQA \
    --out data/generated/72b/sft/TextVQA.jsonl

A run that was stopped goes on where it was. With --server URL a server with OpenAI's interface
answers, such as one that serves an export of the checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.checkpoint.format.manifest import MANIFEST, read_manifest
from nvlm.errors import UserError, run_command
from nvlm.evaluate.answering.worker import answer_log, work
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import GenerateParams, RunParams, TaskParams
from nvlm.launch.failure import told_once
from nvlm.params import load_params


def main() -> None:
    """Read the arguments; ask a server, or start one process a tensor-parallel rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", required=True, help="section of params.yaml: eval.generate")
    parser.add_argument("--task", required=True, help="a task of eval.tasks in params.yaml")
    parser.add_argument("--checkpoint", type=Path, required=True, help="model to ask")
    parser.add_argument("--data", type=Path, required=True, help="directory of the ground truth")
    parser.add_argument("--out", type=Path, required=True, help="answers to write (JSON lines)")
    parser.add_argument("--blank", action="store_true", help="show grey images: a baseline")
    parser.add_argument("--server", help="URL up to /v1 of a server that serves the checkpoint")
    arguments = parser.parse_args()

    params = load_params(arguments.params, GenerateParams)
    run = load_params("eval.run", RunParams)
    task = load_params(f"eval.tasks.{arguments.task}", TaskParams)
    questions = read_questions(arguments.data, task.ground_truth)
    grid = read_manifest(arguments.checkpoint).grid
    if grid.pipeline > 1:
        raise UserError(
            f"{arguments.checkpoint} has {grid.pipeline} pipeline stages, and generation wants 1: "
            "run src/repartition.py --pipeline-parallel 1"
        )
    if arguments.server:
        from nvlm.evaluate.answering.server import ask_server

        log = answer_log(params, task, arguments, questions)
        ask_server(
            arguments.server,
            log.pending(questions),
            task.ask,
            params.sampling,
            run,
            blank=arguments.blank,
            write=log.append,
        )
        log.finish(arguments.out, questions)
    else:
        from nvlm.launch.stage import LaunchParams, launch_stage
        from nvlm.parallel.mesh import GridParams

        launch_stage(
            load_params("launch", LaunchParams),
            work,
            grid.tensor,
            GridParams(tensor=grid.tensor),
            params,
            run,
            task,
            arguments,
            name=f"generate_{arguments.task}",
            inputs=[arguments.checkpoint / MANIFEST, *sorted(arguments.data.glob("*.*"))],
            imports="nvlm.evaluate.answering.generation",
        )


if __name__ == "__main__":
    run_command(told_once(main))
