"""Task 9: answer the questions of one task with a checkpoint, on the grid it is laid out for.

Run with: python src/generate.py --params eval.generate --task TextVQA \
    --checkpoint checkpoints/72b/sft --data data/eval/TextVQA \
    --out data/generated/72b/sft/TextVQA.jsonl

A run that was stopped goes on where it was. With --server URL a server with OpenAI's interface
answers, such as one that serves an export of the checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.checkpoint.manifest import read_manifest
from nvlm.errors import UserError, run_command
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import GenerateParams, RunParams, TaskParams
from nvlm.evaluate.question import Question
from nvlm.evaluate.resume import AnswerLog, depends_on
from nvlm.params import load_params

if TYPE_CHECKING:
    from nvlm.parallel.mesh import GridParams


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
        from nvlm.evaluate.server import ask_server

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
        from nvlm.parallel.launch import launch
        from nvlm.parallel.mesh import GridParams

        launch(work, grid.tensor, GridParams(tensor=grid.tensor), params, run, task, arguments)


def answer_log(
    params: GenerateParams,
    task: TaskParams,
    arguments: argparse.Namespace,
    questions: Sequence[Question],
) -> AnswerLog:
    """Where the answers of this very run are kept until all are in."""
    others = (arguments.blank, arguments.server)
    described = depends_on(arguments.checkpoint, params, task.ask, questions, *others)
    return AnswerLog(f"{arguments.out.stem}-answers", described)


def work(
    grid: GridParams,
    params: GenerateParams,
    run: RunParams,
    task: TaskParams,
    arguments: argparse.Namespace,
) -> None:
    """One rank: its share of the model, all questions; rank 0 writes the answers."""
    import torch

    from nvlm.evaluate.generation import generate_answers
    from nvlm.evaluate.prompter import Prompter
    from nvlm.model.tokens import load_tokenizer
    from nvlm.parallel.mesh import parallel_mesh
    from nvlm.parallel.state import load_model

    questions = read_questions(arguments.data, task.ground_truth)
    log = answer_log(params, task, arguments, questions)
    with parallel_mesh(grid) as mesh:
        pending = [log.pending(questions) if mesh.is_main else []]
        torch.distributed.broadcast_object_list(pending)
        if pending[0]:
            dtype: torch.dtype = getattr(torch, params.dtype)
            model = load_model(arguments.checkpoint, mesh, dtype, gather_logits=True)
            tokenizer = load_tokenizer(arguments.checkpoint / "tokenizer")
            prompter = Prompter(
                tokenizer, model.architecture, params, task.ask, blank=arguments.blank
            )
            generate_answers(
                model,
                prompter,
                pending[0],
                run,
                group=mesh.tensor.get_group(),
                write=log.append if mesh.is_main else None,
            )
        if mesh.is_main:
            log.finish(arguments.out, questions)


if __name__ == "__main__":
    run_command(main)
