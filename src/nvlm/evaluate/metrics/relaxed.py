"""ChartQA's relaxed accuracy: a number may be 5 % off, anything else must be equal.

``score`` is ours, after Methani et al. 2020 and Masry et al. 2022. A number is read with its sign,
without thousands' commas, a currency sign before it, or a per cent sign or period after it; it must
lie within 5 % of the gold, and a gold of 0 must be met. Other answers are compared without regard
to case, white space or a period at the end. "nan" and "inf" are words.

``recipe`` is Megatron-LM's (evaluation/evaluate_vqav2.py), quirks and all: VQAEval's normalisation
(``metrics.vqa``) comes first, so that "-3" equals "3"; "$5" is no number and not "5"; "nan" is a
number and equals nothing, itself included.

``pix2struct`` is the rule that most published comparisons use (google-research/pix2struct,
metrics.py; lmms-eval has a copy): "12%" is 0.12, and so not 12; a number is what Python's float()
reads, so that "5." is 5 but "1,000" and "$5" are words; words, and any answer to a gold of 0, must
be equal in lower case, white space and all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from nvlm.errors import UserError
from nvlm.evaluate.metrics.constant import best_of_commonest
from nvlm.evaluate.metrics.vqa import normalise
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

TOLERANCE = 0.05
_NUMBER = re.compile(
    r"([+-]?)[$€£¥]?([+-]?)((?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[+-]?\d+)?)\s?%?"
)


def score(questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """One verdict an answer. Unparsable: empty. Raises UserError for more than one gold."""
    verdicts = []
    for question, answer in zip(questions, answers, strict=True):
        if len(question.references) != 1:
            raise UserError(
                f"question {question.id!r} has {len(question.references)} answers, "
                "and relaxed accuracy is defined for one"
            )
        (gold,) = question.references
        read = _plain(answer)
        verdicts.append(
            Verdict(
                score=float(is_right(read, _plain(gold))),
                read_as=read,
                unparsable=not read,
                other_scores={
                    "recipe": float(is_right_by_recipe(answer, gold)),
                    "pix2struct": float(is_right_by_pix2struct(answer, gold)),
                },
            )
        )
    return verdicts


def best_constant(questions: Sequence[Question]) -> str:
    """The best of the commonest golds."""
    return best_of_commonest(questions, score)


def is_right(answer: str, gold: str) -> bool:
    """Ours, of plain texts."""
    number, gold_number = _number(answer), _number(gold)
    if number is None or gold_number is None:
        return answer == gold
    # The comparison itself must not turn 1.05 against 1 down.
    return abs(number - gold_number) <= TOLERANCE * abs(gold_number) * (1 + 1e-12)


def is_right_by_recipe(answer: str, gold: str) -> bool:
    """The recipe's, of raw texts."""
    answer, gold = normalise(answer).rstrip("%"), normalise(gold).rstrip("%")
    try:
        number, gold_number = float(answer), float(gold)
    except ValueError:
        return answer == gold
    return gold_number * 0.95 <= number <= gold_number * 1.05


def is_right_by_pix2struct(answer: str, gold: str) -> bool:
    """Pix2struct's, of raw texts."""
    number, gold_number = _fraction(answer), _fraction(gold)
    if number is None or not gold_number:
        return answer.lower() == gold.lower()
    return abs(number - gold_number) / abs(gold_number) <= TOLERANCE


def _fraction(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


def _number(text: str) -> float | None:
    found = _NUMBER.fullmatch(text)
    if not found or not any(character.isdigit() for character in found[3]):
        return None
    if found[1] and found[2]:
        return None
    try:
        value = float(found[1] + found[2] + found[3].replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
