"""What one rank of the generating stage does: its share of the model, all questions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvlm.evaluate.answering.resume import AnswerLog, depends_on
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import GenerateParams, RunParams, TaskParams
from nvlm.evaluate.question import Question

if TYPE_CHECKING:
    from nvlm.parallel.mesh import GridParams


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
    """Answer the questions of ``arguments`` (of src/generate.py); rank 0 writes the answers."""
    import torch

    from nvlm.evaluate.answering.generation import generate_answers
    from nvlm.evaluate.answering.prompter import Prompter
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
