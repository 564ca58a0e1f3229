"""AI2D and RealWorldQA: the option's letter, or a word that must be equal.

``score`` is strict (``metrics.choice``): an answer that chooses no option is wrong, and an open
answer must be equal after VQAEval's normalisation (``metrics.vqa``) and say something. Options come
from the question, or from its text where the publisher writes them there ("A. rain\\nB. snow").
``first_choice`` and ``random`` guess the unreadable (``metrics.guess``).

``recipe`` is Megatron-LM's (evaluation/evaluate_vqav2.py): equality after the normalisation, which
drops the article "a", so that for a gold "A" the answers "", "the" and "A." score.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase

from nvlm.errors import UserError
from nvlm.evaluate.metrics.choice import parse_choice
from nvlm.evaluate.metrics.constant import best_of_commonest
from nvlm.evaluate.metrics.guess import readings
from nvlm.evaluate.metrics.vqa import normalise
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

_OPTION = re.compile(r"^\(?([A-Z])[.):]\)? *(.+)$", re.MULTILINE)


def score(questions: Sequence[Question], answers: Sequence[str]) -> list[Verdict]:
    """One verdict an answer. Unparsable: no option chosen, or an empty open answer.

    Raises UserError for a question with more than one gold.
    """
    verdicts = []
    for question, answer in zip(questions, answers, strict=True):
        if len(question.references) != 1:
            raise UserError(
                f"question {question.id!r} has {len(question.references)} answers: one is expected"
            )
        asked = _with_options(question)
        verdicts.append(_choice(asked, answer) if asked.choices else _word(asked, answer))
    return verdicts


def best_constant(questions: Sequence[Question]) -> str:
    """The best of the commonest golds."""
    return best_of_commonest(questions, score)


def _choice(question: Question, answer: str) -> Verdict:
    (gold,) = question.references
    chosen = parse_choice(answer, question.choices)
    guessed = readings(question, chosen)
    return Verdict(
        score=float(chosen == gold),
        read_as=chosen or "",
        unparsable=chosen is None,
        other_scores={
            **{name: float(letter == gold) for name, letter in guessed.items()},
            "recipe": float(normalise(answer) == normalise(gold)),
        },
    )


def _word(question: Question, answer: str) -> Verdict:
    (gold,) = question.references
    read = normalise(answer)
    equal = float(read == normalise(gold))
    right = equal if read else 0.0
    return Verdict(
        score=right,
        read_as=read,
        unparsable=not read,
        other_scores={"first_choice": right, "random": right, "recipe": equal},
    )


def _with_options(question: Question) -> Question:
    """The question with the options that its text lists, if its gold is the letter of one."""
    (gold,) = question.references
    if question.choices or gold not in ascii_uppercase or len(gold) != 1:
        return question
    listed: list[str] = []
    for letter, text in _OPTION.findall(question.text):
        if letter == ascii_uppercase[len(listed) % len(ascii_uppercase)]:
            listed.append(text.strip())
    enough = ascii_uppercase.index(gold) < len(listed)
    return replace(question, choices=tuple(listed)) if enough else question
