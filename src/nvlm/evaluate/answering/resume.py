"""What a killed run needs to go on: its answers, on disk as they come.

They are kept outside the stage's output, which DVC deletes before a run, in a file whose name is a
digest of all that the answers depend on: a run that was killed goes on where it was, and one of
another model, prompt or set begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nvlm.checkpoint.format.manifest import MANIFEST
from nvlm.errors import UserError
from nvlm.evaluate.answering.answers import Answer, line_of, parse_answer, write_answers
from nvlm.evaluate.answering.ask import images, prompt
from nvlm.evaluate.params import AskParams, GenerateParams
from nvlm.evaluate.question import Question, QuestionId

RESUME = Path(".resume")  # ignored by git


class AnswerLog:
    """The answers of a run that may be killed at any time."""

    def __init__(self, name: str, depends_on: Any) -> None:
        """``depends_on``: whatever the answers depend on, as JSON can hold it."""
        described = json.dumps(depends_on, sort_keys=True).encode()
        self._path = RESUME / f"{name}-{hashlib.sha256(described).hexdigest()[:16]}.jsonl"

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers to ``questions`` that an earlier run left, the first one to each.

        Only whole lines count: a kill, or a machine that stops, can cut the last one short.
        """
        known = {question.id for question in questions}
        kept: dict[QuestionId, Answer] = {}
        if self._path.is_file():
            whole, _, _ = self._path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
            for line in whole.split("\n"):
                try:
                    answer = parse_answer(json.loads(line), str(self._path))
                except (ValueError, UserError):
                    continue
                if answer.question_id in known:
                    kept.setdefault(answer.question_id, answer)
        return list(kept.values())

    def pending(self, questions: Sequence[Question]) -> list[Question]:
        """The ``questions`` that are still to be asked."""
        answered = {answer.question_id for answer in self.answers(questions)}
        return [question for question in questions if question.id not in answered]

    def append(self, answers: Iterable[Answer]) -> None:
        """Write ``answers`` and wait until they are on disk; half a line is ended first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.write(b"\n")
            file.write("".join(map(line_of, answers)).encode())
            file.flush()
            os.fsync(file.fileno())

    def write(self, out: Path, questions: Sequence[Question]) -> None:
        """Write the answers to ``questions``, all of which are in, to ``out``."""
        write_answers(out, questions, self.answers(questions))

    def forget(self) -> None:
        """Forget the run, which has succeeded."""
        self._path.unlink(missing_ok=True)


def depends_on(
    checkpoint: Path,
    params: GenerateParams,
    ask: AskParams,
    questions: Sequence[Question],
    *others: Any,
) -> Any:
    """What the answers depend on; ``others`` come on top. Images count by name and size."""
    manifest = (checkpoint / MANIFEST).read_bytes()
    return [
        hashlib.sha256(manifest).hexdigest(),
        asdict(params),
        asdict(ask),
        [
            [question.id, prompt(question, ask)]
            + [[path.name, path.stat().st_size] for path in images(question, ask)]
            for question in questions
        ],
        *others,
    ]
