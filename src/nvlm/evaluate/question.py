"""A benchmark's question, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

QuestionId = int | str


@dataclass(frozen=True, kw_only=True)
class Question:
    """One item to answer and what it is scored against."""

    id: QuestionId  # as the ground truth spells it, unique within the task
    images: tuple[Path, ...]  # the first is <image 1> of the text; at least one
    text: str  # the question as published; "" where every image is asked the same
    references: tuple[str, ...]  # at least one; none where nothing is scored (inference)
    choices: tuple[str, ...] = ()  # of a multiple-choice question; its reference is a letter
    category: str = ""  # scored apart as well, where the benchmark has kinds of question
    dataset: str = ""  # that the question was taken from, where the rule depends on it (OCRBench)
    answer_type: str = ""  # integer, float, list or text, where the rule depends on it (MathVista)
    precision: int | None = None  # decimals that count of a float
