"""Scores on the way: a few questions of some tasks, answered by the model while it is trained.

Which questions is fixed by their ids alone, so that the curves of two runs are of the same
questions: a task's, ordered by the digest of the id, up to the number asked for. Benchmarks' own
order would give one subject or one image. Prompts, tiles and rules are those of ``eval`` in
params.yaml; answers are greedy, whatever ``eval.generate.sampling`` says. A score over so few
questions is for the curve, not for a table (and CIDEr weighs words by how rare they are in them).

What a run leaves behind doesn't depend on this: no stage counts this module as its dependency
(``NO_OUTPUT`` in nvlm.closure), and tests hold the bytes of runs with and without it together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from tqdm import tqdm

from nvlm.errors import UserError
from nvlm.evaluate.answering.generation import batches_by_length, decode, stop_tokens
from nvlm.evaluate.answering.prompter import PromptBatch, Prompter, left_pad
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import EvaluationParams, TaskParams
from nvlm.evaluate.question import Question
from nvlm.evaluate.reporting.scoring import DIGITS, metric_called
from nvlm.evaluate.verdict import Metric
from nvlm.parallel.generation import generate_on_grid, observed
from nvlm.params import load_params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nvlm.model.nvlm import NVLM
    from nvlm.parallel.mesh import Mesh
    from nvlm.train.online import OnlineParams

DATA = Path("data/eval")


@dataclass(frozen=True, kw_only=True)
class OnlineTask:
    """A task's questions, and how they are asked and scored."""

    name: str
    prompter: Prompter
    metric: Metric
    questions: list[Question]
    batches: list[list[int]]  # places in ``questions``, for all replicas together


class OnlineEvaluation:
    """Asks and scores; every rank of the grid holds one and calls it at the same steps."""

    def __init__(
        self,
        params: OnlineParams,
        model: NVLM,
        tokenizer: PreTrainedTokenizerFast,
        mesh: Mesh,
        *,
        data: Path = DATA,
    ) -> None:
        """Rank 0 reads the questions in ``data``/TASK, which ``dvc repro prepare_eval`` makes.

        Raises UserError for an unknown task, or questions that are missing, damaged or too long.
        """
        self.model, self.mesh = model, mesh
        evaluation = load_params("eval", EvaluationParams)
        self.tile_chunk = evaluation.run.tile_chunk
        self.stop_ids = stop_tokens(tokenizer)
        self.tasks = []
        for name, task in _tasks(params, evaluation).items():
            ask = Prompter(tokenizer, model.architecture, evaluation.generate, task.ask)
            self.tasks.append(self._task(name, task, ask, params, data))

    def scores(self) -> dict[str, float]:
        """Each task's score, 0 to 1 (CIDEr: 0 to 10); the same on every rank."""
        scores = {}
        with observed(self.model):
            for task in self.tasks:
                answers = self.answers(task)
                if self.mesh.is_main:
                    verdicts = task.metric.score(task.questions, answers)
                    mean = sum(verdict.score for verdict in verdicts) / len(verdicts)
                    scores[task.name] = round(mean, DIGITS)
        told = [scores]
        dist.broadcast_object_list(told)
        return told[0]

    def answers(self, task: OnlineTask) -> list[str]:
        """The model's answers to the questions of ``task``, in their order, on every rank."""
        mine: dict[int, str] = {}
        hidden = None if self.mesh.is_main else True
        for batch in tqdm(task.batches, task.name, unit="batch", leave=False, disable=hidden):
            places = share(batch, self.mesh.data_rank, self.mesh.data.size())
            prompts = self._prompts(task, places)
            generated = generate_on_grid(
                self.model,
                self.mesh,
                input_ids=prompts.input_ids.to(self.mesh.device),
                attention_mask=prompts.attention_mask.to(self.mesh.device),
                visual_index=prompts.visual_index.to(self.mesh.device),
                tiles=prompts.tiles.to(self.mesh.device),
                tiles_per_row=prompts.tiles_per_row,
                tile_chunk=self.tile_chunk,
                max_new_tokens=task.prompter.ask.max_new_tokens,
                stop_ids=self.stop_ids,
            )
            for place, ids in zip(places, generated.tolist(), strict=True):
                mine[place] = decode(task.prompter.tokenizer, ids, self.stop_ids)
        gathered: list[dict[int, str]] = [{} for _ in range(self.mesh.data.size())]
        dist.all_gather_object(gathered, mine, group=self.mesh.data.get_group())
        found = {place: text for of_rank in gathered for place, text in of_rank.items()}
        return [found[place] for place in range(len(task.questions))]

    def _task(
        self, name: str, task: TaskParams, prompter: Prompter, params: OnlineParams, data: Path
    ) -> OnlineTask:
        """Rank 0 chooses the questions and their batches, and tells the others."""
        chosen: list[tuple[list[Question], list[list[int]]]] = [([], [])]
        if self.mesh.is_main:
            questions = subset(read_questions(data / name, task.ground_truth), params.questions)
            lengths = [prompter.length(question) for question in questions]
            at_once = params.batch_size * self.mesh.data.size()
            chosen = [(questions, list(batches_by_length(lengths, at_once)))]
        dist.broadcast_object_list(chosen)
        questions, batches = chosen[0]
        return OnlineTask(
            name=name,
            prompter=prompter,
            metric=metric_called(task.metric),
            questions=questions,
            batches=batches,
        )

    def _prompts(self, task: OnlineTask, places: Sequence[int]) -> PromptBatch:
        """What the model reads: made by one rank of the replica, as training's batches are."""
        message: list[PromptBatch | None] = [None]
        if self.mesh.is_first and self.mesh.tensor_rank == 0:
            samples = [task.prompter.encode(task.questions[place]) for place in places]
            message = [left_pad(samples)]
        dist.broadcast_object_list(message, group=self.mesh.replica.get_group(), group_src=0)
        assert message[0] is not None
        return message[0]


def subset(questions: Iterable[Question], number: int) -> list[Question]:
    """At most ``number`` of ``questions``: those whose ids have the smallest SHA-256 digests."""

    def digest(question: Question) -> bytes:
        return hashlib.sha256(str(question.id).encode()).digest()

    return sorted(questions, key=digest)[:number]


def share(places: Sequence[int], rank: int, ranks: int) -> list[int]:
    """What ``rank`` of ``ranks`` asks of ``places``: each rank something, if need be once more."""
    filled = [*places, *[places[0]] * (ranks - len(places))]
    return filled[rank::ranks]


def _tasks(params: OnlineParams, evaluation: EvaluationParams) -> dict[str, TaskParams]:
    """The tasks to ask, by name."""
    if unknown := [name for name in params.tasks if name not in evaluation.tasks]:
        raise UserError(
            f"online.tasks: {unknown[0]!r} should be one of eval.tasks: "
            f"{', '.join(evaluation.tasks)}"
        )
    return {name: evaluation.tasks[name] for name in params.tasks}
