"""OCRBench: a gold must stand in the answer; points by kind of text.

``score`` gives an item one point at most, and none for an empty gold. Texts are compared in lower
case with line breaks as spaces; handwritten formulas (HME100k) with their case, without white
space. ``official`` is the publishers' program (Liu et al. 2023; OCRBench/example.py): one point at
most as well, but an empty gold always matches, and of a formula spaces and line breaks go, but not
tabs. ``recipe`` is Megatron-LM's (evaluation/evaluate_ocrbench.py), the same but that every gold
that matches is a point, so that an item can score above 1. The published total of 1,000 items is
the sum: 1,000 times the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvlm.evaluate.metrics.constant import best_of_commonest
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

FORMULAS = "HME100k"


def score(questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """One verdict an answer. Unparsable: empty."""
    return [_score(question, answer) for question, answer in zip(questions, answers, strict=True)]


def best_constant(questions: Sequence[Question]) -> str:
    """The best of the commonest golds."""
    return best_of_commonest(questions, score)


def _score(question: Question, answer: str) -> Verdict:
    formula = question.dataset == FORMULAS
    read = "".join(answer.split()) if formula else _line(answer)
    golds = ["".join(gold.split()) if formula else _line(gold) for gold in question.references]
    by_recipe = _without_spaces if formula else _line
    matches = sum(by_recipe(gold) in by_recipe(answer) for gold in question.references)
    return Verdict(
        score=float(any(gold in read for gold in golds if gold)),
        read_as=read,
        unparsable=not read,
        other_scores={"official": float(matches > 0), "recipe": float(matches)},
    )


def _line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
