"""A benchmark's question, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

QuestionId = int | str


@dataclass(frozen=True, kw_only=True)
class Question:
    """One item to answer and what it is scored against."""

    id: QuestionId  # as the ground truth spells it, unique within the task
    image: Path
    text: str  # the question as published; "" where every image is asked the same
    references: tuple[str, ...]  # at least one
    choices: tuple[str, ...] = ()  # of a multiple-choice question; its reference is a letter
    category: str = ""  # scored apart as well, where the benchmark has kinds of question
