"""What one rank of the generating stage does: its share of the model, all questions.

Opening a checkpoint can take longer than asking it. The process that has it open therefore goes on
to the other tasks whose answers are missing or older than the checkpoint (``answer_ahead``); what
it leaves in their logs their own stages find there, and start no rank.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.checkpoint.format.manifest import MANIFEST, read_manifest
from nvlm.errors import UserError
from nvlm.evaluate.answering.resume import AnswerLog, depends_on
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import GenerateParams, RunParams, TaskParams
from nvlm.evaluate.question import Question

if TYPE_CHECKING:
    from nvlm.model.nvlm import NVLM
    from nvlm.parallel.grid import GridParams
    from nvlm.parallel.mesh import Mesh

# What the answers are made by, as far as it is code; absent where there is no graph.
CODE = Path("stages/code/generate.txt")


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The questions of one task, to one checkpoint."""

    task: TaskParams
    checkpoint: Path
    data: Path  # directory of the ground truth
    out: Path  # answers to write
    blank: bool = False  # show grey images
    server: str | None = None  # that answers instead of the checkpoint

    def tensor_parallel(self) -> int:
        """The checkpoint's ranks; UserError if it is laid out for several pipeline stages."""
        grid = read_manifest(self.checkpoint).grid
        if grid.pipeline > 1:
            raise UserError(
                f"{self.checkpoint} has {grid.pipeline} pipeline stages, and generation wants 1: "
                "run src/repartition.py --pipeline-parallel 1"
            )
        return grid.tensor

    def questions(self) -> list[Question]:
        """As the publisher's files have them; raises UserError if they don't."""
        return read_questions(self.data, self.task.ground_truth)

    def log(self, params: GenerateParams, questions: Sequence[Question]) -> AnswerLog:
        """Where the answers of this very run are kept until all are in."""
        others = (self.blank, self.server, CODE.read_text() if CODE.is_file() else None)
        described = depends_on(self.checkpoint, params, self.task.ask, questions, *others)
        return AnswerLog(f"{self.out.stem}-answers", described)

    def is_awaited(self) -> bool:
        """Whether the ground truth is there, and no answers that are younger than the model."""
        opened = (self.checkpoint / MANIFEST).stat().st_mtime
        answered = self.out.is_file() and self.out.stat().st_mtime >= opened
        return self.data.is_dir() and not answered


def work(
    grid: GridParams,
    params: GenerateParams,
    run: RunParams,
    asking: Asking,
    ahead: Sequence[Asking] = (),
) -> None:
    """Answer ``asking``, which rank 0 writes; then ``ahead``, of the same checkpoint, into logs.

    What is wrong with one of those its own stage will tell.
    """
    import torch

    from nvlm.parallel.mesh import parallel_mesh
    from nvlm.parallel.state import load_model

    with parallel_mesh(grid) as mesh:
        dtype: torch.dtype = getattr(torch, params.dtype)
        model = load_model(asking.checkpoint, mesh, dtype, gather_logits=True)
        log = _answer(asking, model, mesh, params, run)
        if mesh.is_main:
            log.write(asking.out, asking.questions())
        for other in ahead:
            if mesh.is_main:
                print(f"{other.out.stem} is answered ahead", file=sys.stderr, flush=True)
            with suppress(UserError):
                _answer(other, model, mesh, params, run)
        if mesh.is_main:
            log.forget()


def _answer(
    asking: Asking, model: NVLM, mesh: Mesh, params: GenerateParams, run: RunParams
) -> AnswerLog:
    """Ask what is not answered yet; the log of all answers, which rank 0 alone may read."""
    import torch

    from nvlm.evaluate.answering.generation import generate_answers
    from nvlm.evaluate.answering.prompter import Prompter
    from nvlm.model.tokens import load_tokenizer

    questions = asking.questions()
    log = asking.log(params, questions)
    pending = [log.pending(questions) if mesh.is_main else []]
    torch.distributed.broadcast_object_list(pending)
    tokenizer = load_tokenizer(asking.checkpoint / "tokenizer")
    ask = asking.task.ask
    generate_answers(
        model,
        Prompter(tokenizer, model.architecture, params, ask, blank=asking.blank),
        pending[0],
        run,
        group=mesh.tensor.get_group(),
        write=log.append if mesh.is_main else None,
    )
    return log
