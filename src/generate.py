"""Task 9: answer the questions of one task with a checkpoint, on the grid it is laid out for.

Run with: python src/generate.py --params eval.generate --task TextVQA \
    --checkpoint checkpoints/72b/sft --data data/eval/TextVQA \
    --out data/generated/72b/sft/TextVQA.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.checkpoint.manifest import read_manifest
from nvlm.errors import UserError, run_command
from nvlm.evaluate.answers import write_answers
from nvlm.evaluate.ask import prompt
from nvlm.evaluate.ground_truth.formats import read_questions
from nvlm.evaluate.params import GenerateParams, TaskParams
from nvlm.params import load_params

if TYPE_CHECKING:
    from nvlm.parallel.mesh import GridParams


def main() -> None:
    """Read the arguments and start one process a tensor-parallel rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", required=True, help="section of params.yaml: eval.generate")
    parser.add_argument("--task", required=True, help="a task of eval.tasks in params.yaml")
    parser.add_argument("--checkpoint", type=Path, required=True, help="model to ask")
    parser.add_argument("--data", type=Path, required=True, help="directory of the ground truth")
    parser.add_argument("--out", type=Path, required=True, help="answers to write (JSON lines)")
    arguments = parser.parse_args()

    params = load_params(arguments.params, GenerateParams)
    task = load_params(f"eval.tasks.{arguments.task}", TaskParams)
    read_questions(arguments.data, task.ground_truth)  # complain before processes start
    grid = read_manifest(arguments.checkpoint).grid
    if grid.pipeline > 1:
        raise UserError(
            f"{arguments.checkpoint} has {grid.pipeline} pipeline stages, and generation wants 1: "
            "run src/repartition.py --pipeline-parallel 1"
        )

    from nvlm.parallel.launch import launch
    from nvlm.parallel.mesh import GridParams

    launch(work, grid.tensor, GridParams(tensor=grid.tensor), params, task, arguments)


def work(
    grid: GridParams, params: GenerateParams, task: TaskParams, arguments: argparse.Namespace
) -> None:
    """One rank: its share of the model, all questions; rank 0 writes the answers."""
    import torch

    from nvlm.evaluate.generation import Prompter, generate_answers
    from nvlm.model.tokens import load_tokenizer
    from nvlm.parallel.mesh import parallel_mesh
    from nvlm.parallel.state import load_model

    questions = read_questions(arguments.data, task.ground_truth)
    with parallel_mesh(grid) as mesh:
        dtype: torch.dtype = getattr(torch, params.dtype)
        model = load_model(arguments.checkpoint, mesh, dtype, gather_logits=True)
        tokenizer = load_tokenizer(arguments.checkpoint / "tokenizer")
        prompter = Prompter(tokenizer, model.architecture, params, task.ask)
        answers = generate_answers(model, prompter, questions, progress=mesh.is_main)
        if mesh.is_main:
            prompts = [prompt(question, task.ask) for question in questions]
            write_answers(arguments.out, questions, prompts, answers)


if __name__ == "__main__":
    run_command(main)
